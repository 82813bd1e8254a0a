// The scripts of groovy_scripts, run in a real QuPath core on a project that QuPath makes here.
// There is no window: the scripts' context is handed to them, with a log in place of dialogs.
// Prints `name: JSON` for each thing that the tests look at. Arguments: folder for the project
// and the server's states, image, groovy_scripts, executable, model for prompts.
import pathosam.ConsoleUi
import pathosam.Context
import pathosam.Json
import pathosam.Nuclei
import pathosam.PathosamClient
import pathosam.PathosamException
import pathosam.ServerProcess
import pathosam.Settings
import qupath.lib.common.ColorTools
import qupath.lib.common.GeneralTools
import qupath.lib.images.ImageData
import qupath.lib.images.servers.ImageServerMetadata
import qupath.lib.images.servers.ImageServerProvider
import qupath.lib.objects.PathObject
import qupath.lib.objects.PathObjects
import qupath.lib.objects.classes.PathClass
import qupath.lib.objects.hierarchy.events.PathObjectHierarchyEvent
import qupath.lib.objects.hierarchy.events.PathObjectHierarchyListener
import qupath.lib.projects.Project
import qupath.lib.projects.ProjectIO
import qupath.lib.projects.Projects
import qupath.lib.regions.ImagePlane
import qupath.lib.roi.ROIs

import java.awt.image.BufferedImage

class Listening extends ConsoleUi {

    final List<String> said = []
    final List<String> calls = []
    boolean changing
    boolean saving = true
    boolean impatient

    Listening(Map<String, Object> answers) {
        super(answers)
    }

    @Override
    boolean confirm(String title, String text) {
        calls << "confirm: ${text}".toString()
        super.confirm(title, text)
    }

    @Override
    Object working(String title, Closure work) {
        calls << 'work'
        super.working(title, work)
    }

    @Override
    Object change(Closure work) {
        changing = true
        try {
            return work()
        } finally {
            changing = false
        }
    }

    @Override
    boolean saveOpen(Object project) {
        calls << 'save'
        saving
    }

    @Override
    void reloadOpen(Object project) {
        calls << 'reload'
    }

    @Override
    boolean isCancelled() {
        impatient
    }

    @Override
    void tell(String title, String text) {
        said << text
    }

    @Override
    void show(String title, String text) {
        said << text
    }

    @Override
    void fail(String title, PathosamException error) {
        said << "${error.code}: ${error.message}".toString()
    }

}

folder = new File(args[0])
image = new File(args[1])
scripts = new File(args[2])
executable = args[3]
tiny = args[4]
plane = ImagePlane.defaultPlane

void tell(String name, Object value) {
    println "${name}: ${Json.write(value)}"
}

Map seen(PathObject one) {
    [id: one.ID.toString(), kind: one.annotation ? 'annotation' : one.detection ? 'detection' : 'other',
        parent: one.parent?.ID?.toString(), pathClass: one.pathClass?.toString(), color: one.pathClass?.color,
        locked: one.locked, name: one.name, metadata: one.metadata.findAll { String key, String value ->
            !key.startsWith('_') && key != 'Object ID' },
        measurements: one.measurements.collectEntries { String key, Number value -> [key, value as double] }
            .findAll { String key, double value -> !Double.isNaN(value) },
        probability: Double.isNaN(one.classProbability) ? null : one.classProbability,
        centre: [one.ROI.centroidX, one.ROI.centroidY], area: one.ROI.getArea()]
}

List<Map> everything(ImageData data) {
    data.hierarchy.getFlattenedObjectList(null).findAll { PathObject one -> !one.rootObject }.collect { PathObject one -> seen(one) }
}

Context context(Project project, ImageData data, Map<String, String> settings = [:], Map<String, Object> answers = [:],
        Map<String, String> words = [:]) {
    new Context(imageData: data, project: project, scripts: scripts, args: words, ui: new Listening(answers),
        settings: new Settings([executable: executable, device: 'cpu', home: new File(folder, 'home').path] + settings))
}

/** Run a script as QuPath would; what was said, how many events there were, what is there now. */
Map stub(String name, Context context) {
    List<PathObjectHierarchyEvent> events = []
    int outside = 0
    PathObjectHierarchyListener listener = { PathObjectHierarchyEvent one ->
        events << one
        outside += context.ui.changing ? 0 : 1
    } as PathObjectHierarchyListener
    context.imageData?.hierarchy?.addListener(listener)
    File script = new File(scripts, name + '.groovy')
    new GroovyShell(this.class.classLoader, new Binding('qupath.script.file': script.path, 'pathosam.context': context))
        .evaluate(script)
    context.imageData?.hierarchy?.removeListener(listener)
    tell name, context.ui.said
    [said: context.ui.said, calls: context.ui.calls, events: events.size(), outside: outside,
        objects: everything(context.imageData)]
}

/** What the server has noted of the run that made the nuclei of a step. */
Map withdrawn(Project project, Object entry, Map step) {
    List<String> runs = step.objects*.metadata*.get(Nuclei.RUN).findAll().unique()
    File file = new File(project.path.parent.toFile(), "pathosam/runs/${runs.max()}/${entry.ID}/withdrawn.json")
    file.file ? Json.parse(file.text) as Map : [:]
}

File made(File directory) {
    directory.mkdirs()
    directory
}

PathObject rectangle(int x, int y, int width, int height, String name, Closure make = PathObjects.&createAnnotationObject) {
    make(ROIs.createRectangleROI(x, y, width, height, plane), name == null ? null : PathClass.fromString(name))
}

// QuPath's window does this when it starts: builders of images are written as JSON from here on.
Class.forName('qupath.lib.images.servers.ImageServers')

// A project with an image of tissue, annotations, and an object that a person drew.
Project<BufferedImage> project = Projects.createProject(made(new File(folder, 'project')), BufferedImage)
Object entry = project.addImage(ImageServerProvider.buildServer(image.path, BufferedImage).builder)
entry.imageName = 'tissue'
PathClass.fromString('Connective', ColorTools.packRGB(1, 2, 3))
ImageData data = entry.readImageData()
data.updateServerMetadata(new ImageServerMetadata.Builder(data.server.metadata).pixelSizeMicrons(0.6, 0.6).build())
data.imageType = ImageData.ImageType.BRIGHTFIELD_H_E
PathObject tumor = rectangle(10, 260, 240, 240, 'Tumor')
PathObject other = rectangle(260, 10, 240, 490, null)
PathObject nested = rectangle(120, 270, 120, 220, 'Stroma')
PathObject drawn = rectangle(160, 420, 9, 9, 'Epithelial', PathObjects.&createDetectionObject)
data.hierarchy.addObjects([tumor, other, rectangle(260, 10, 240, 250, 'Ignore*')])
tumor.addChildObjects([nested])
nested.addChildObjects([drawn])
data.hierarchy.fireHierarchyChangedEvent(this)
entry.saveImageData(data)
project.syncChanges()
tell 'version', GeneralTools.version?.toString()
tell 'ids', [tumor: tumor.ID, other: other.ID, nested: nested.ID, drawn: drawn.ID]
tell 'before', everything(data)

// Nothing selected.
tell 'nothing_selected', stub('segment_selected', context(project, data))

// Segment, and again.
data.hierarchy.selectionModel.setSelectedObject(tumor)
Map first = stub('segment_selected', context(project, data))
tell 'first', first
tell 'at_home', new File(folder, 'home/server.json').file
int steps = data.historyWorkflow.size()
tell 'step', [count: steps, script: data.historyWorkflow.lastStep.script, name: data.historyWorkflow.lastStep.name]
data.hierarchy.selectionModel.setSelectedObject(tumor)
tell 'second', stub('segment_selected', context(project, data))
tell 'first_withdrawn', withdrawn(project, entry, first)

// A person edits four of them; then it is done again, and undone.
List<PathObject> found = data.hierarchy.detectionObjects.findAll { PathObject one -> Nuclei.run(one) != null }
    .sort { PathObject one -> one.ID.toString() }
found[0].locked = true
found[1].pathClass = PathClass.fromString('Mitosis')
found[2].name = 'that one'
double[] x = found[3].ROI.allPoints*.x as double[]
x[0] += 1.5
found[3].ROI = ROIs.createPolygonROI(x, found[3].ROI.allPoints*.y as double[], plane)
tell 'edited', found.take(4).collect { PathObject one -> seen(one) }
tell 'before_third', everything(data)
data.hierarchy.selectionModel.setSelectedObject(tumor)
Map third = stub('segment_selected', context(project, data))
tell 'third', third
tell 'undone', stub('undo_last_run', context(project, data))
tell 'third_withdrawn', withdrawn(project, entry, third)

// By class, and everything without dialogs; the area of Ignore* is left out.
tell 'by_class', stub('segment_class', context(project, data, [:], ['PathoSAM: segment nuclei': 'Stroma']))
tell 'batch', stub('segment_batch', context(project, data, [classes: 'Epithelial = -'], [:], [annotations: 'all']))
tell 'reviewed', stub('mark_reviewed', context(project, data))

// Saved, read again: what was written is still known.
entry.saveImageData(data)
project.syncChanges()
ImageData again = entry.readImageData()
tell 'loaded', everything(again)
PathObject tumorAgain = again.hierarchy.annotationObjects.find { PathObject one -> one.ID == tumor.ID }
again.hierarchy.selectionModel.setSelectedObject(tumorAgain)
tell 'after_loading', stub('segment_selected', context(project, again))

// Over the project's files.
tell 'corrections', stub('record_corrections', context(project, data))
Context unsaved = context(project, data)
unsaved.ui.saving = false
tell 'not_saved', stub('segment_project', unsaved)
Context impatient = context(project, data)
impatient.ui.impatient = true
tell 'given_up', stub('segment_project', impatient)
tell 'refused_project', stub('segment_project', context(project, data, [:], ['PathoSAM: segment this project': null]))
tell 'project', stub('segment_project', context(project, data))
ImageData written = entry.readImageData()
tell 'written', everything(written)
PathObject tumorWritten = written.hierarchy.annotationObjects.find { PathObject one -> one.ID == tumor.ID }
written.hierarchy.selectionModel.setSelectedObject(tumorWritten)
tell 'after_project', stub('segment_selected', context(project, written))
ImageData rolling = entry.readImageData()
tell 'rollback', stub('undo_last_run', context(project, rolling))
tell 'rolled_back', everything(entry.readImageData())
tell 'suggested', stub('suggest_regions', context(project, data))
tell 'with_suggestions', everything(entry.readImageData())
tell 'again', stub('segment_changed', context(project, data))
tell 'not_again', stub('segment_changed', context(project, data, [:], ['PathoSAM: segment again': false]))
tell 'tuned', stub('fine_tune', context(project, data, [:], ['PathoSAM: fine-tune': [name: 'ours']]))
tell 'not_tuned', stub('fine_tune', context(project, data))

// Settings and the doctor.
Map<String, String> store = [executable: executable, home: new File(folder, 'home').path, device: 'cpu']
Context setting = new Context(imageData: data, project: project, scripts: scripts, settings: new Settings(store),
    ui: new Listening(['PathoSAM: settings': [classes: 'Epithelial = Tumor', mpp: '0.5']]))
stub('settings', setting)
tell 'stored', store
Context wrong = new Context(imageData: data, project: project, scripts: scripts, settings: new Settings(store),
    ui: new Listening(['PathoSAM: settings': [mpp: 'much']]))
tell 'refused', stub('settings', wrong).said
tell 'doctor', stub('doctor', context(project, data)).said
new PathosamClient(new ServerProcess(new File(folder, 'home'), executable, null)).shutdown()

// A server that may not read the image, with a model that answers prompts: pixels are sent.
File apart = new File(folder, 'apart')
File elsewhere = new File(folder, 'elsewhere')
elsewhere.mkdirs()
PathosamClient client = new PathosamClient(new ServerProcess(apart, executable, null))
client.connect(null, ['--port', '0', '--device', 'cpu', '--root', elsewhere.path, '--model', tiny])
Map<String, String> prompting = [home: apart.path, model: tiny]
PathObject points = PathObjects.createAnnotationObject(ROIs.createPointsROI([300, 330] as double[], [60, 90] as double[], plane))
PathObject box = rectangle(60, 150, 20, 20, null)
data.hierarchy.addObjects([points, box])
data.hierarchy.selectionModel.setSelectedObjects([points, box], box)
tell 'before_prompt', everything(data)
tell 'prompted', stub('add_nucleus', context(project, data, prompting))
tell 'selected_after', data.hierarchy.selectionModel.selectedObject?.ID?.toString()
tell 'prompt_undone', stub('undo_last_run', context(project, data))
data.hierarchy.selectionModel.setSelectedObject(drawn)
tell 'refined', stub('refine_nucleus', context(project, data, prompting))
tell 'refine_undone', stub('undo_last_run', context(project, data))
data.hierarchy.selectionModel.setSelectedObject(tumor)
tell 'too_large', stub('add_nucleus', context(project, data, prompting)).said
data.hierarchy.selectionModel.setSelectedObject(nested)
tell 'by_pixels', stub('segment_selected', context(project, data, prompting))
client.shutdown()
