package pathosam

import groovy.transform.CompileStatic
import javafx.concurrent.Task

/**
 * Work beside the display, whose progress a dialog of QuPath shows.
 *
 * Compiled statically: only so may the protected methods of Task be called from here.
 */
@CompileStatic
class Work extends Task<Object> {

    private final Closure work
    private volatile boolean stopped
    private volatile Exception failure
    private volatile Object result

    Work(Closure work) {
        this.work = work
    }

    /** Show how far the work is. */
    void told(String message, double fraction) {
        updateMessage(message)
        updateProgress(fraction, 1.0d)
    }

    /** Ask the work to end where it next can; the task itself goes on until then. */
    void stop() {
        stopped = true
    }

    boolean isStopped() {
        stopped
    }

    /** What the work returned; what it threw is thrown here. */
    Object outcome() {
        if (failure != null) {
            throw failure
        }
        result
    }

    // Whatever it is, outcome() throws it where the work was asked for.
    @Override
    @SuppressWarnings('CatchException')
    protected Object call() {
        try {
            result = work.call(new WorkProgress(this))
        } catch (Exception error) {
            failure = error
        }
        result
    }

}
