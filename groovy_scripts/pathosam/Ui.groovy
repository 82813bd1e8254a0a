package pathosam

/** What a menu entry asks of whoever stands in front of QuPath, or of a log. */
interface Ui {

    /** Show what came of it. */
    void tell(String title, String text)

    /** Show a long text, line by line. */
    void show(String title, String text)

    /** Show an error with its remedy. */
    void fail(String title, PathosamException error)

    /** Ask whether to go on. */
    boolean confirm(String title, String text)

    /** Ask for one of several; null where the person gives up. */
    String choose(String title, String text, List<String> choices, String preset)

    /** Have values edited: rows of key, prompt, value, help; the new values, null where given up. */
    Map<String, String> edit(String title, List<List<String>> rows)

    /** Do long work, which gets a Progress, beside the display; what it returns. */
    Object working(String title, Closure work)

    /** Change a hierarchy where QuPath expects it to be changed; what the closure returns. */
    Object change(Closure work)

    /** Add classes that QuPath does not list yet. */
    void listClasses(Collection classes)

    /** Save what is open and unsaved of a project; false where the person gives up. */
    boolean saveOpen(Object project)

    /** Show the open images of a project as they are on disk now. */
    void reloadOpen(Object project)

}
