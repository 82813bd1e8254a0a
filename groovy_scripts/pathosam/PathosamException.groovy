package pathosam

import groovy.transform.CompileStatic

/**
 * An error that a person can mend: the thing it is about, what happened, and what to do.
 *
 * Errors of the server arrive with the same three parts and a code.
 */
@CompileStatic
class PathosamException extends RuntimeException {

    static final String CANCELLED = 'cancelled'

    final String subject
    final String reason
    final String remedy
    final String code

    PathosamException(String subject, String reason, String remedy, String code = 'client') {
        super("${subject}: ${reason}. ${remedy}".toString())
        this.subject = subject
        this.reason = reason
        this.remedy = remedy
        this.code = code
    }

    static PathosamException cancelled() {
        new PathosamException('PathoSAM', 'cancelled', 'Nothing was changed.', CANCELLED)
    }

    /** What a server told of an error; what it did not tell is as given. */
    static PathosamException told(Map error, String subject, String reason, String code) {
        new PathosamException((error?.subject ?: subject) as String, (error?.cause ?: reason) as String,
            (error?.remedy ?: 'Run it again; Extensions > PathoSAM > Check set-up may tell more.') as String,
            (error?.code ?: code) as String)
    }

    boolean isCancellation() {
        code == CANCELLED
    }

}
