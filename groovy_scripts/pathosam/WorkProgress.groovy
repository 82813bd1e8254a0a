package pathosam

import groovy.transform.CompileStatic

/** Passes on what work says of itself, and whether it should stop. */
@CompileStatic
class WorkProgress implements Progress {

    private final Work work

    WorkProgress(Work work) {
        this.work = work
    }

    @Override
    void report(String message, double fraction) {
        work.told(message, fraction)
    }

    @Override
    boolean isCancelled() {
        work.stopped
    }

}
