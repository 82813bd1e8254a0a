package pathosam

import qupath.lib.objects.PathObject
import qupath.lib.objects.classes.PathClass

/** Work on the project's files by the server: segment, collect corrections, fine-tune, undo. */
class ProjectWork {

    private static final String ALL = 'all'
    private static final String SEGMENT = 'PathoSAM: segment this project'
    private static final String CORRECTIONS = 'PathoSAM: record corrections'
    private static final String TUNE = 'PathoSAM: fine-tune'
    private static final String UNDO = 'PathoSAM: undo last run'
    private static final String REVIEW = 'PathoSAM: mark as reviewed'
    private static final String SUGGEST = 'PathoSAM: suggest regions'
    private static final String AGAIN = 'PathoSAM: segment again'
    private static final String MODEL = 'model'
    private static final List<String> REVIEW_CLASSES = ['PathoSAM: review', 'PathoSAM: reviewed'].asImmutable()
    private static final Map<String, String> FIGURES = [pq: 'PQ', f1_50: 'F1 at IoU 0.5', msa: 'mSA'].asImmutable()
    private static final String NAME = 'name'
    private static final String WHAT = 'what'
    private static final String REVIEWED = 'PathoSAM reviewed'
    private static final String WARNING = 'The files of the project are changed. Open images are saved first and ' +
        'shown anew afterwards; images that are open in another QuPath would overwrite the result when saved there.'

    /** Menu: Segment this project... */
    static void segment(Context context) {
        context.doing(SEGMENT, 'Cancelled; images that were finished before have their new nuclei.') {
            String path = context.projectPath
            List<String> classes = [ALL] + context.project.pathClasses*.toString().findAll { String one ->
                one && !one.startsWith('Ignore')
            }
            String which = context.args.annotations ?: context.ui.choose(SEGMENT, 'Annotations of class', classes, ALL)
            String all = images(context.project.imageList.size())
            if (which == null || !context.ui.confirm(SEGMENT,
                    "Segment nuclei in annotations (${which}) of ${all}?\n\n${WARNING}")) {
                return
            }
            Map<String, Object> request = asked(context, [kind: 'project', project: path, annotations: [which]])
            if (context.settings.classNames) {
                request.classes = context.settings.classNames
            }
            onFiles(context, SEGMENT, request) { Map job -> entries(job) }
        }
    }

    /** Menu: Suggest regions to review... */
    static void suggest(Context context) {
        context.doing(SUGGEST) {
            String path = context.projectPath
            String count = context.ui.choose(SUGGEST, 'How many regions', ['5', '10', '20', '50'], '20')
            if (count == null) {
                return
            }
            Map<String, Object> request = asked(context, [kind: 'suggest', project: path, count: count as int])
            onFiles(context, SUGGEST, request) { Map job -> suggested(job.result as Map) }
            context.ui.listClasses(REVIEW_CLASSES.collect { String one -> PathClass.fromString(one) })
        }
    }

    /** Menu: Segment again where the model differs... */
    static void segmentChanged(Context context) {
        context.doing(AGAIN, 'Cancelled; images that were finished before have their new nuclei.') {
            String path = context.projectPath
            if (context.ui.confirm(AGAIN, "Let the model of the settings (${context.settings.get(MODEL)}) look at " +
                    'what runs treated, and segment again where it finds other nuclei? Reviewed regions and edited ' +
                    "nuclei stay as they are.\n\n${WARNING}")) {
                Map<String, Object> request = asked(context, [kind: 'rerun', project: path])
                onFiles(context, AGAIN, request) { Map job -> changed(job.result as Map) }
            }
        }
    }

    /** Menu: Record corrections. */
    static void collect(Context context) {
        context.doing(CORRECTIONS) {
            String path = context.projectPath
            if (context.ui.saveOpen(context.project)) {
                Map job = work(context, CORRECTIONS, [kind: 'collect', project: path])
                context.ui.tell(CORRECTIONS, corrections(job.result as List<Map>))
            }
        }
    }

    /** Menu: Fine-tune. */
    static void fineTune(Context context) {
        context.doing(TUNE, 'Cancelled; the models are as they were.') {
            String path = context.projectPath
            Map<String, String> chosen = context.ui.edit(TUNE, [
                [NAME, 'New model', 'corrected', 'What it is called. The model in use stays as it is'],
                [WHAT, 'What learns', 'class-head', 'class-head: seconds; decoder and all: minutes to hours without ' +
                    'a graphics card', 'class-head|decoder|all'],
            ])
            // What is corrected but not saved would teach nothing.
            if (chosen != null && context.ui.saveOpen(context.project)) {
                Map job = work(context, TUNE,
                    [kind: 'finetune', project: path, name: chosen[NAME], what: chosen[WHAT]])
                context.ui.show(TUNE, tuned(job.result as Map))
            }
        }
    }

    /** Menu: Undo last run. */
    static void undo(Context context) {
        context.doing(UNDO, 'Cancelled; images that were finished before are without the run.') {
            Changes last = Changes.last(context.hierarchy)
            if (last != null) {
                int kept = context.ui.change { last.undo(context.hierarchy) } as int
                context.ui.tell(UNDO, "${last.addedCount - kept} objects taken out, ${last.removedCount} put back" +
                    (last.reshapedCount ? ", ${last.reshapedCount} outlines as before" : '') +
                    (kept ? "; ${kept} edited ones kept" : ''))
                Withdrawn.note(context, last.addedObjects.findAll { PathObject one -> one.parent == null }, true)
                return
            }
            List<PathObject> marked = Earlier.marked(context.hierarchy)
                .findAll { PathObject one -> Nuclei.recorded(Nuclei.run(one)) }
            if (marked.empty) {
                throw new PathosamException('image', 'it has no nuclei of a run', 'There is nothing to undo here.',
                    'nothing_to_undo')
            }
            String run = marked.collect { PathObject one -> Nuclei.run(one) }.max()
            List<PathObject> own = marked.findAll { PathObject one -> Nuclei.run(one) == run }
            if (own.any { PathObject one -> Nuclei.fingerprinted(one) }) {
                takeOut(context, run, own)
            } else if (context.ui.confirm(UNDO,
                    "Run ${run} was over the project. Undo it in all of its images?\n\n${WARNING}")) {
                onFiles(context, UNDO, [kind: 'rollback', project: context.projectPath, run: run]) {
                    Map job -> undone(job.result as List<Map>)
                }
            }
        }
    }

    /** Menu: Mark annotation as reviewed. */
    static void review(Context context) {
        context.doing(REVIEW) {
            List<PathObject> annotations = Regions.selected(context.hierarchy)
            context.ui.change {
                annotations.each { PathObject one -> one.metadata[REVIEWED] = 'yes' }
                context.hierarchy.fireObjectsChangedEvent(REVIEW, annotations)
            }
            context.ui.tell(REVIEW, "${annotations.size()} marked: what is inside counts as corrected")
        }
    }

    private static void takeOut(Context context, String run, List<PathObject> own) {
        List<PathObject> go = own.findAll { PathObject one -> Nuclei.untouched(one) }
        Changes changes = new Changes(run)
        go.each { PathObject one -> changes.remove(one) }
        context.ui.change {
            changes.apply(context.hierarchy)
            Changes.forget(context.hierarchy)
        }
        context.ui.tell(UNDO, "${go.size()} nuclei of run ${run} taken out" +
            (go.size() < own.size() ? "; ${own.size() - go.size()} edited ones kept" : ''))
        Withdrawn.note(context, go, true)
    }

    /** Work that changes the project's files: save first, show anew afterwards. */
    private static void onFiles(Context context, String title, Map<String, Object> request, Closure telling) {
        if (!context.ui.saveOpen(context.project)) {
            return
        }
        try {
            Map job = work(context, title, request)
            context.ui.tell(title, telling(job) as String)
        } finally {
            // What a cancelled or failed run has written is there all the same.
            context.ui.reloadOpen(context.project)
        }
    }

    /** A request with the model and the pixel size of the settings. */
    private static Map<String, Object> asked(Context context, Map<String, Object> request) {
        Map<String, Object> full = request + [model: context.settings.get(MODEL)]
        context.settings.mpp == null ? full : full + [mpp: context.settings.mpp]
    }

    private static Map work(Context context, String title, Map<String, Object> request) {
        context.ui.working(title) { Progress progress -> context.client(progress).run(request, progress) } as Map
    }

    private static String entries(Map job) {
        List<Map> entries = (job.result?.entries ?: []) as List<Map>
        int nuclei = entries.sum(0) { Map one -> one.nuclei ?: 0 } as int
        List<Map> failed = entries.findAll { Map one -> one.state == 'failed' }
        "${nuclei} nuclei in ${images(entries.size() - failed.size())}" +
            (failed ? '; failed: ' + failed.collect { Map one -> "${one.name} (${one.message})" }.join('; ') : '')
    }

    private static String corrections(List<Map> compared) {
        Map<String, Integer> counts = [:]
        compared.each { Map image ->
            image.counts?.each { String kind, Number count -> counts[kind] = (counts[kind] ?: 0) + count.intValue() }
        }
        "${images(compared.size())} compared with what runs found: " + (counts ?
            counts.collect { String kind, Number count -> "${count} ${kind}" }.join(', ') : 'nothing to compare')
    }

    private static String suggested(Map report) {
        List<Map> found = report.suggestions as List<Map>
        "${found.size()} regions in ${images(found*.image.unique().size())} are annotations of class " +
            "${REVIEW_CLASSES[0]} now, of ${report.looked_at} that were looked at. Correct them, then mark them as " +
            'reviewed' +
            (report.problems ? '; not looked at: ' + (report.problems as List).join('; ') : '')
    }

    private static String changed(Map report) {
        List<Map> looked = (report.changes as List<Map>).findAll { Map one -> one.message == null }
        List<Map> failed = (report.changes as List<Map>).findAll { Map one -> one.message != null }
        int fields = looked.sum(0) { Map one -> one.fields ?: 0 } as int
        int differing = looked.sum(0) { Map one -> one.changed ?: 0 } as int
        "${differing} of ${fields} fields in ${images(looked.size())} differ" +
            (report.run ? "; segmented again: ${entries([result: report.run])}" : '; nothing was segmented again') +
            (failed ? '; failed: ' + failed.collect { Map one -> "${one.name} (${one.message})" }.join('; ') : '')
    }

    private static String undone(List<Map> entries) {
        int removed = entries.sum(0) { Map image -> image.removed ?: 0 } as int
        int kept = entries.sum(0) { Map image -> image.kept ?: 0 } as int
        List<Map> failed = entries.findAll { Map image -> image.action == 'failed' }
        "As before: ${images(entries.count { Map image -> image.action == 'restored' } as int)}" +
            (removed ? "; ${removed} nuclei taken out of images that had changed since" : '') +
            (kept ? "; ${kept} edited ones kept" : '') +
            (failed ? '; failed: ' + failed.collect { Map image -> "${image.name} (${image.message})" }.join('; ') : '')
    }

    /** What a fine-tuning came to: the figures of base and new model on what was held out, and why not. */
    private static String tuned(Map report) {
        List<String> lines = [report.adopted ? "${report.name} can be chosen in Settings." :
            report.held_out?.figures ? "${report.name} is no better than ${report.base} and was not adopted." :
            "${report.name} was not adopted."]
        report.held_out?.figures?.each { Map one ->
            lines << "${FIGURES.getOrDefault(one.figure, one.figure)}: ${rounded(one.a)}, now ${rounded(one.b)}"
        }
        (lines + (report.notes ?: [])).join('\n')
    }

    private static String images(int count) {
        count == 1 ? '1 image' : "${count} images"
    }

    private static String rounded(Number figure) {
        figure == null ? '-' : String.format(Locale.ROOT, '%.3f', figure.doubleValue())
    }

}
