package pathosam

import org.slf4j.Logger
import org.slf4j.LoggerFactory

/**
 * No window: what is told goes to QuPath's log, what is asked is answered by what was given
 * beforehand, and errors are thrown, so that a script fails where it should.
 */
class ConsoleUi implements Ui, Progress {

    private static final Logger LOG = LoggerFactory.getLogger('PathoSAM')
    private static final double STEP = 0.1

    /** Answers by a dialog's title. */
    final Map<String, Object> answers

    private double told = -1

    ConsoleUi(Map<String, Object> answers = [:]) {
        this.answers = answers
    }

    @Override
    void tell(String title, String text) {
        LOG.info('{}: {}', title, text)
    }

    @Override
    void show(String title, String text) {
        LOG.info('{}\n{}', title, text)
    }

    @Override
    void fail(String title, PathosamException error) {
        LOG.error('{}: {}', title, error.message)
        throw error
    }

    @Override
    boolean confirm(String title, String text) {
        LOG.info('{}: {}', title, text)
        answers.getOrDefault(title, true)
    }

    @Override
    String choose(String title, String text, List<String> choices, String preset) {
        answers.getOrDefault(title, preset)
    }

    @Override
    Map<String, String> edit(String title, List<List<String>> rows) {
        Map<String, String> given = answers[title]
        given == null ? null : rows.collectEntries { List<String> row -> [row[0], given.getOrDefault(row[0], row[2])] }
    }

    @Override
    Object working(String title, Closure work) {
        told = -1
        work(this)
    }

    @Override
    Object change(Closure work) {
        work()
    }

    @Override
    void listClasses(Collection classes) {
        // QuPath's list belongs to its window; the nuclei carry their classes with them.
        LOG.debug('Classes: {}', classes)
    }

    @Override
    boolean saveOpen(Object project) {
        true
    }

    @Override
    void reloadOpen(Object project) {
        LOG.debug('No image is open')
    }

    @Override
    void report(String message, double fraction) {
        if (fraction >= told + STEP) {
            told = fraction
            LOG.info(message)
        }
    }

    @Override
    boolean isCancelled() {
        Thread.currentThread().interrupted
    }

}
