package pathosam

/** The entries of the menu: the name a script calls them by, what the menu says, what they do. */
class Actions {

    /** Entries in the menu's order; null is a line between them. */
    static final List<String> ORDER = [
        'segment_selected', 'segment_class', null,
        'add_nucleus', 'refine_nucleus', null,
        'segment_project', 'undo_last_run', null,
        'suggest_regions', 'mark_reviewed', 'record_corrections', 'fine_tune', 'segment_changed', null,
        'settings', 'doctor',
    ].asImmutable()

    static final Map<String, String> LABELS = [
        segment_selected: 'Segment nuclei in selected annotations',
        segment_class: 'Segment nuclei in all annotations of a class',
        add_nucleus: 'Add nucleus from point/box',
        refine_nucleus: 'Refine selected nucleus',
        segment_project: 'Segment this project...',
        undo_last_run: 'Undo last run',
        suggest_regions: 'Suggest regions to review...',
        mark_reviewed: 'Mark selected annotations as reviewed',
        record_corrections: 'Record corrections',
        fine_tune: 'Fine-tune',
        segment_changed: 'Segment again where the model differs...',
        settings: 'Settings',
        doctor: 'Check set-up (doctor)',
    ].asImmutable()

    private static final Map<String, Closure> WORK = [
        segment_selected: Segmenting.&selected,
        segment_class: Segmenting.&ofClass,
        segment_batch: Segmenting.&batch,
        add_nucleus: Prompting.&add,
        refine_nucleus: Prompting.&refine,
        segment_project: ProjectWork.&segment,
        undo_last_run: ProjectWork.&undo,
        suggest_regions: ProjectWork.&suggest,
        mark_reviewed: ProjectWork.&review,
        record_corrections: ProjectWork.&collect,
        fine_tune: ProjectWork.&fineTune,
        segment_changed: ProjectWork.&segmentChanged,
        settings: SetUp.&settings,
        doctor: SetUp.&doctor,
    ].asImmutable()

    /** Do an entry's work in a given context. */
    static void run(String name, Context context) {
        WORK[name].call(context)
    }

    /** Do an entry's work on what is open in QuPath. */
    static void run(String name, File scripts, List<String> words) {
        if (name == 'install_menu') {
            // By name: only a QuPath with a window has what the menu is made of.
            Actions.classLoader.loadClass('pathosam.Menu').install(scripts)
            return
        }
        run(name, Context.current(scripts, words, name != 'segment_batch'))
    }

}
