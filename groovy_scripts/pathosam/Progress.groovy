package pathosam

/** Who watches a long piece of work, and may ask it to stop. */
interface Progress {

    /**
     * Say how far the work is.
     *
     * @param message what is being done
     * @param fraction from 0 to 1, below 0 where it is not known
     */
    void report(String message, double fraction)

    /** Whether the person asked to stop. */
    boolean isCancelled()

}
