package pathosam

import qupath.lib.objects.PathObject
import qupath.lib.objects.classes.PathClass
import qupath.lib.plugins.workflow.DefaultScriptableWorkflowStep

/** Segments the nuclei inside annotations of the open image. */
class Segmenting {

    private static final String TITLE = 'PathoSAM: segment nuclei'
    private static final String ALL = 'all'
    private static final String SELECTED = 'selected'

    /** Menu: Segment nuclei in selected annotations. */
    static void selected(Context context) {
        context.doing(TITLE) { treat(context, Regions.selected(context.hierarchy), SELECTED) }
    }

    /** Menu: Segment nuclei in all annotations of a class. */
    static void ofClass(Context context) {
        context.doing(TITLE) {
            List<String> classes = Regions.classes(context.hierarchy)
            if (classes.empty) {
                throw new PathosamException('annotations', 'none has a class',
                    'Give annotations a class (Annotations tab), or select them and segment those.', 'no_annotation')
            }
            String name = context.args.annotations ?:
                context.ui.choose(TITLE, 'Annotations of class', classes, classes.first())
            if (name != null) {
                treat(context, Regions.ofClass(context.hierarchy, name), name)
            }
        }
    }

    /** Without dialogs, for Run for project and for QuPath's command line. */
    static void batch(Context context) {
        String which = context.args.annotations ?: ALL
        context.doing(TITLE) {
            List<PathObject> annotations = which == SELECTED ? Regions.selected(context.hierarchy) :
                Regions.ofClass(context.hierarchy, which == ALL ? null : which)
            treat(context, annotations, which)
        }
    }

    /** Segment, and put what was found where earlier nuclei were; what was changed. */
    static Changes treat(Context context, List<PathObject> annotations, String which) {
        Map found = context.ui.working(TITLE) { Progress progress -> segment(context, annotations, progress) } as Map
        Changes changes = found.changes
        Earlier earlier = found.earlier
        context.ui.change {
            changes.apply(context.hierarchy)
            context.image.historyWorkflow.addStep(step(context, which, changes))
            context.ui.listClasses(changes.addedObjects*.pathClass.findAll { PathClass one -> one != null }.unique())
        }
        context.ui.tell(TITLE, summary(annotations.size(), changes, earlier))
        Withdrawn.note(context, changes.removedObjects, false)
        changes
    }

    private static Map<String, Object> segment(Context context, List<PathObject> annotations, Progress progress) {
        PathosamClient client = context.client(progress)
        Map<String, Object> regions = Regions.collection(context.hierarchy, annotations)
        progress.report('Opening the image', -1)
        String run = null
        List<Map> nuclei = []
        parts(context, client, annotations, regions).each { List part ->
            Map job = client.run([kind: 'segment', image: part[0], regions: part[1], options: options(context),
                record: record(context)], progress)
            run = run ?: job.run
            client.result(job.id) { Map feature ->
                if (Nuclei.drawn(feature.geometry)) {
                    nuclei << [detection: Nuclei.detection(feature, run), parent: feature.get('properties').parent]
                }
            }
        }
        Earlier earlier = Earlier.inside(context, client, regions)
        [changes: changes(annotations, nuclei, earlier, run), earlier: earlier]
    }

    /** Images of the server with the regions to treat in each: one, or one for each region sent. */
    private static List<List> parts(Context context, PathosamClient client, List<PathObject> annotations,
            Map<String, Object> regions) {
        ImageSource source = new ImageSource(context.image.server, context.settings)
        String image = source.openFile(client)
        if (image != null) {
            return [[image, regions]]
        }
        Map<String, PathObject> byId = annotations.collectEntries { PathObject one -> [one.ID.toString(), one] }
        regions.features.collect { Map feature ->
            [source.send(client, Regions.bounds([byId[feature.id]])), [type: regions.type, features: [feature]]]
        }
    }

    private static Map<String, Object> options(Context context) {
        Map<String, Object> options = [:]
        if (context.settings.classNames) {
            options.classes = context.settings.classNames
        }
        if (context.settings.get('mode') != Settings.DEFAULTS.mode) {
            options.mode = context.settings.get('mode')
        }
        options
    }

    private static Map<String, Object> record(Context context) {
        context.entry == null ? null : [project: context.projectPath, entry: context.entry.ID]
    }

    private static Changes changes(List<PathObject> annotations, List<Map> nuclei, Earlier earlier, String run) {
        Changes changes = new Changes(run)
        earlier.go.each { PathObject one -> changes.remove(one) }
        Map<String, PathObject> byId = annotations.collectEntries { PathObject one -> [one.ID.toString(), one] }
        List<PathObject> nested = nested(annotations)
        Map<PathObject, PathObject> parents = nuclei.collectEntries { Map one ->
            [one.detection, Nuclei.parent(one.detection, nested, byId[one.parent])]
        }
        Nuclei.clearOf(nuclei*.detection, earlier.stay).each { PathObject one -> changes.add(one, parents[one]) }
        changes
    }

    /** Annotations inside the treated ones, smallest first: a nucleus goes under the smallest that holds it. */
    private static List<PathObject> nested(List<PathObject> annotations) {
        Set<PathObject> inside = [] as Set
        annotations.each { PathObject annotation ->
            inside.addAll(annotation.getDescendantObjects(null).findAll { PathObject one ->
                one.annotation && one.hasROI() && one.ROI.isArea()
            })
        }
        inside.empty ? [] : (inside + annotations).sort { PathObject one -> one.ROI.getArea() }
    }

    private static DefaultScriptableWorkflowStep step(Context context, String which, Changes changes) {
        File script = new File(context.scripts, 'segment_batch.groovy')
        String words = "annotations=${which}".replace("'", "\\'")
        Map<String, Object> parameters = [annotations: which, model: context.settings.get('model'),
            run: changes.run, nuclei: changes.addedCount, replaced: changes.removedCount]
        String call = "new GroovyShell(this.class.classLoader, new Binding(args: ['${words}'] as String[]))\n" +
            "    .evaluate(new File('${script.path.replace('\\', '/').replace("'", "\\'")}'))"
        new DefaultScriptableWorkflowStep(TITLE, parameters, call)
    }

    private static String summary(int annotations, Changes changes, Earlier earlier) {
        Map<String, Integer> counts = changes.addedObjects
            .countBy { PathObject one -> one.pathClass?.toString() ?: 'no class' }
        String classes = counts.sort { Map.Entry one -> -one.value }
            .collect { String name, Integer count -> "${name} ${count}" }.join(', ')
        List<String> said = ["${changes.addedCount} ${changes.addedCount == 1 ? 'nucleus' : 'nuclei'} in " +
            "${annotations} annotation${annotations == 1 ? '' : 's'}" + (classes ? " (${classes})" : '')]
        if (changes.removedCount) {
            said << "${changes.removedCount} of an earlier run replaced"
        }
        if (earlier.stayInside) {
            said << "${earlier.stayInside} edited ones kept"
        }
        said.join('; ')
    }

}
