package pathosam

/** Settings, and a look at whether all is there. */
class SetUp {

    private static final String KEEP = 'PathoSAM: settings'
    private static final String CHECK = 'PathoSAM: check set-up'
    private static final String EXECUTABLE = 'executable'
    private static final String MODEL = 'model'
    private static final List<String> NEED_RESTART = [EXECUTABLE, 'device', 'home']

    /** Menu: Settings. */
    static void settings(Context context) {
        context.doing(KEEP) {
            Map found = context.ui.working(KEEP) { Progress progress ->
                progress.report('Looking at what is installed', -1)
                [executable: executable(context), checks: checks(context), models: models(context)]
            } as Map
            Settings now = context.settings
            String device = found.checks.find { Map one -> one.name == 'device' }?.found ?: ''
            List<List<String>> rows = [
                [EXECUTABLE, 'Executable', now.get(EXECUTABLE) ?: found.executable ?: '',
                    'pathosam-qupath, empty: look for it, none: never start a server here'],
                [MODEL, 'Model', now.get(MODEL), 'A name of: pathosam-qupath models list', found.models.join('|')],
                ['device', 'Device', now.get('device'), "auto, cpu, cuda, cuda:1, mps. ${device}".trim()],
                ['mode', 'Mode', now.get('mode'), 'How nuclei are told apart', 'ais|apg'],
                ['classes', 'Classes', now.get('classes'),
                    'Model class = class in the project; ... Nothing after = : unclassified; - : left out'],
                ['mpp', 'Pixel size', now.get('mpp'),
                    '\u00b5m/px that counts instead of the image\'s own; empty: its own'],
                ['home', 'Server folder', now.get('home'), 'Where server.json lies; empty: .pathosam-qupath at home'],
            ]
            Map<String, String> edited = context.ui.edit(KEEP, rows)
            if (edited == null) {
                return
            }
            checked(edited)
            boolean restart = rows.any { List<String> row -> row[0] in NEED_RESTART && edited[row[0]] != row[2] }
            PathosamClient running = new PathosamClient(context.serverProcess)
            edited.each { String key, String value -> now.set(key, value) }
            if (restart && now.get(EXECUTABLE) != ServerProcess.NEVER) {
                context.ui.working(KEEP) { Progress progress -> running.shutdown() }
            }
            context.ui.tell(KEEP, 'Saved' + (restart ? '; the server starts anew with the next use' : ''))
        }
    }

    /** Menu: Check set-up (doctor). */
    static void doctor(Context context) {
        context.doing(CHECK) {
            List<Map> checks = context.ui.working(CHECK) { Progress progress ->
                progress.report('Looking at the set-up', -1)
                List<Map> found = checks(context)
                found.empty ? [executableCheck(context)] : found + [serverCheck(context)]
            } as List<Map>
            context.ui.show(CHECK, checks.collect { Map one -> line(one) }.join('\n'))
        }
    }

    private static String line(Map check) {
        String found = "${check.status.toUpperCase().padRight(5)} ${check.name}: ${check.found}"
        check.remedy ? "${found}\n      ${check.remedy}" : found
    }

    /** Raise what is wrong with values before they are kept. */
    private static void checked(Map<String, String> values) {
        Settings tried = new Settings([:] + values)
        tried.mpp
        tried.classNames
    }

    private static String executable(Context context) {
        try {
            return context.serverProcess.find().path
        } catch (PathosamException ignored) {
            return null
        }
    }

    private static List<Map> checks(Context context) {
        if (executable(context) == null) {
            return []
        }
        Map said = context.serverProcess.run(['doctor', '--json', '--model', context.settings.get(MODEL)])
        Object read = null
        try {
            read = Json.parse(said.out as String)
        } catch (PathosamException ignored) {
            String words = said.err.readLines().takeRight(2).join(' / ')
            throw new PathosamException('doctor', "it ended with code ${said.code}: ${words}",
                'Run it in a terminal: pathosam-qupath doctor', 'doctor')
        }
        if (read instanceof Map && read.error) {
            throw new PathosamException(read.error.subject, read.error.cause, read.error.remedy, 'doctor')
        }
        read as List<Map>
    }

    private static List<String> models(Context context) {
        List<String> names = context.runningClient?.models()*.name ?: []
        ([context.settings.get(MODEL)] + names).unique()
    }

    private static Map executableCheck(Context context) {
        try {
            context.serverProcess.find()
            return [status: 'ok', name: EXECUTABLE, found: executable(context)]
        } catch (PathosamException error) {
            return [status: 'fail', name: EXECUTABLE, found: "${error.subject}: ${error.reason}", remedy: error.remedy]
        }
    }

    private static Map serverCheck(Context context) {
        try {
            Map health = new PathosamClient(context.serverProcess).answering()
            return [status: 'ok', name: 'server', found: health == null ? 'not running; it starts with the first use' :
                "${health.state}, version ${health.version}, ${health.device}, ${health.model?.name}, protocol " +
                "${health.protocol.min} to ${health.protocol.max}"]
        } catch (PathosamException error) {
            return [status: 'fail', name: 'server', found: "${error.subject}: ${error.reason}", remedy: error.remedy]
        }
    }

}
