package pathosam

import qupath.lib.images.ImageData
import qupath.lib.objects.hierarchy.PathObjectHierarchy
import qupath.lib.projects.Project
import qupath.lib.projects.ProjectImageEntry

/** What a menu entry works on: an image, its project, the settings, and who is asked. */
class Context {

    final ImageData imageData
    final Project project
    final Settings settings
    final Ui ui

    /** Arguments of a script: 'annotations=Tumor'. */
    final Map<String, String> args

    /** The folder of the scripts. */
    final File scripts

    private PathosamClient connected

    Context(Map<String, Object> parts) {
        imageData = parts.imageData
        project = parts.project
        settings = parts.settings
        ui = parts.ui
        args = parts.args ?: [:]
        scripts = parts.scripts
    }

    /**
     * The context of a script that QuPath runs.
     *
     * @param words the script's arguments
     * @param asking whether there may be dialogs
     */
    static Context current(File scripts, List<String> words, boolean asking) {
        Class window = windowClass()
        Object gui = window?.instance
        Map<String, String> args = words.findAll { String one -> one.contains('=') }
            .collectEntries { String one -> one.split('=', 2) as List }
        Class qp = Context.classLoader.loadClass('qupath.lib.scripting.QP')
        new Context(
            imageData: qp.currentImageData,
            project: qp.project,
            settings: new Settings(window == null ? [:] : made('QuPathPreferences'), args),
            ui: gui == null ? new ConsoleUi() : made(asking ? 'QuPathUi' : 'QuietUi'),
            args: args,
            scripts: scripts,
        )
    }

    /** The hierarchy of the open image. */
    PathObjectHierarchy getHierarchy() {
        image.hierarchy
    }

    /** The open image. */
    ImageData getImage() {
        if (imageData == null) {
            throw new PathosamException('image', 'none is open', 'Open an image and try again.', 'no_image')
        }
        imageData
    }

    /** The image's entry of the project, or null. */
    ProjectImageEntry getEntry() {
        project == null || imageData == null ? null : project.getEntry(imageData)
    }

    /** The project's file, as the server is told. */
    String getProjectPath() {
        if (project?.path == null) {
            throw new PathosamException('project', 'none is open', 'Open a project and try again.', 'no_project')
        }
        project.path.toAbsolutePath().toString()
    }

    /** A client whose server answers and has the model of the settings. */
    PathosamClient client(Progress progress) {
        if (connected == null) {
            PathosamClient client = new PathosamClient(serverProcess)
            Map health = client.connect(progress, serverWords)
            String model = settings.get('model')
            if (model && health.model?.name != model && client.models().any { Map one -> one.name == model }) {
                client.useModel(model, progress)
            }
            connected = client
        }
        connected
    }

    /** A client where a server answers already, else null: nothing is started. */
    PathosamClient getRunningClient() {
        if (connected != null) {
            return connected
        }
        PathosamClient client = new PathosamClient(serverProcess)
        client.answering() == null ? null : client
    }

    ServerProcess getServerProcess() {
        new ServerProcess(settings.home, settings.get('executable'), scripts)
    }

    /**
     * Do a menu entry's work; what goes wrong is shown with its remedy.
     *
     * @param cancelled what is told where the person gives up in the middle
     */
    Object doing(String title, String cancelled = 'Cancelled; nothing was changed.', Closure work) {
        try {
            return work()
        } catch (PathosamException error) {
            if (error.cancellation) {
                ui.tell(title, cancelled)
                return null
            }
            ui.fail(title, error)
        }
        null
    }

    private List<String> getServerWords() {
        List<String> words = ['--model', settings.get('model'), '--device', settings.get('device')]
        List<File> roots = [new File(System.getProperty('user.home'))]
        if (project?.path != null) {
            roots << project.path.parent.toFile()
        }
        File file = imageData == null ? null : ImageSource.file(imageData.server)
        if (file != null) {
            roots << file.parentFile
        }
        roots.unique().each { File one -> words.addAll(['--root', one.path]) }
        words
    }

    private static Class windowClass() {
        try {
            return Context.classLoader.loadClass('qupath.lib.gui.QuPathGUI')
        } catch (ClassNotFoundException ignored) {
            return null
        }
    }

    /** Classes that touch QuPath's window are looked up by name, so that nothing else needs one. */
    private static Object made(String name) {
        Context.classLoader.loadClass('pathosam.' + name).newInstance()
    }

}
