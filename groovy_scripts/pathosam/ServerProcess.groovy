package pathosam

import groovy.transform.CompileStatic

import java.nio.file.Files

/**
 * The server's process: where it says how to reach it, and how it is started.
 *
 * A server writes server.json (address, token, process id) into a folder that only its user
 * can read: PATHOSAM_HOME, else .pathosam-qupath in the home folder.
 */
@CompileStatic
class ServerProcess {

    /** The executable's name in Settings that means: never start a server here. */
    static final String NEVER = 'none'

    private static final String COMMAND = 'pathosam-qupath'
    private static final int LOG_LINES = 6

    /** The folder of server.json and server.log. */
    final File home

    /** What Settings say: a path, 'none', or nothing, then it is looked for. */
    final String executable

    /** The folder of these scripts; a clone's environment lies beside it. */
    final File scripts

    ServerProcess(File home, String executable, File scripts) {
        // Groovy 5 (QuPath 0.7) takes a folder that is not there yet for false.
        this.home = home == null ? defaultHome() : home
        this.executable = executable?.trim() ?: null
        this.scripts = scripts
    }

    /** Where the server keeps its state unless it is told otherwise. */
    static File defaultHome() {
        String named = System.getenv('PATHOSAM_HOME')
        named ? new File(named) : new File(System.getProperty('user.home'), '.pathosam-qupath')
    }

    /** What server.json says, or null where there is none that can be read. */
    Map<String, Object> state() {
        File file = new File(home, 'server.json')
        if (!file.file) {
            return null
        }
        try {
            Object read = Json.parse(file.getText('UTF-8'))
            return read instanceof Map && read['url'] && read['token'] ? (Map<String, Object>) read : null
        } catch (IOException | PathosamException ignored) {
            // Being written, or broken: the same as none. A server replaces the file as a whole.
            return null
        }
    }

    File getLog() {
        new File(home, 'server.log')
    }

    /** The executable: as Settings say, on the PATH, or in an environment near these scripts. */
    File find() {
        if (executable == NEVER) {
            throw new PathosamException('server', 'none answers, and Settings say that none is started here',
                'Start it where it should run (and the SSH tunnel to it), or change the executable in ' +
                'Extensions > PathoSAM > Settings.', 'no_server')
        }
        if (executable) {
            File named = runnable(new File(executable))
            if (named == null) {
                throw new PathosamException(executable, 'the executable of Settings is not there, or may not be run',
                    'Correct it in Extensions > PathoSAM > Settings, or leave it empty to have it looked for.',
                    'no_executable')
            }
            return named
        }
        for (File folder : places()) {
            File found = runnable(new File(folder, COMMAND))
            if (found != null) {
                return found
            }
        }
        throw new PathosamException(COMMAND, 'it was not found on this machine',
            'Install it (python3 run.py setup in a clone, or pip install), then name the executable in ' +
            'Extensions > PathoSAM > Settings.', 'no_executable')
    }

    /**
     * Start a server that outlives this process. Its output goes to the log.
     *
     * @param words arguments after 'serve'
     */
    Process start(List<String> words) {
        File command = find()
        ensureHome()
        File nothing = new File(windows ? 'NUL' : '/dev/null')
        ProcessBuilder builder = new ProcessBuilder([command.path, 'serve'] + words)
            .redirectErrorStream(true)
            .redirectInput(nothing)
            .redirectOutput(ProcessBuilder.Redirect.to(log))
        builder.environment().put('PATHOSAM_HOME', home.absolutePath)
        try {
            return builder.start()
        } catch (IOException error) {
            throw new PathosamException(command.path, "it could not be started (${error.message})",
                'Run it in a terminal to see why: ' + command.path + ' serve', 'not_started')
        }
    }

    /** Run the executable to its end; its exit code and what it wrote. */
    Map<String, Object> run(List<String> words) {
        File errors = Files.createTempFile('pathosam', '.log').toFile()
        try {
            Process process = new ProcessBuilder([find().path] + words)
                .redirectError(ProcessBuilder.Redirect.to(errors)).start()
            process.outputStream.close()
            String said = process.inputStream.getText('UTF-8')
            return [code: process.waitFor(), out: said, err: errors.getText('UTF-8')]
        } finally {
            errors.delete()
        }
    }

    /** The last lines of the log, for an error. */
    String lastWords() {
        log.file ? log.readLines('UTF-8').takeRight(LOG_LINES).join(' / ') : 'it wrote nothing'
    }

    /** Make the folder where it is missing; it will hold a token, so it is its user's alone. */
    private void ensureHome() {
        if (home.directory) {
            return
        }
        home.mkdirs()
        [home.&setReadable, home.&setWritable, home.&setExecutable].each { Closure allow ->
            allow.call(false, false)
            allow.call(true, true)
        }
    }

    private static boolean isWindows() {
        System.getProperty('os.name').toLowerCase().contains('windows')
    }

    private List<File> places() {
        String inside = windows ? 'Scripts' : 'bin'
        List<File> folders = (System.getenv('PATH') ?: '').split(File.pathSeparator).findAll { String one -> one }
            .collect { String one -> new File(one) }
        if (scripts != null) {
            folders.add(new File(scripts.absoluteFile.parentFile, '.venv/' + inside))
        }
        String user = System.getProperty('user.home')
        // QuPath that is started from a desktop often has a shorter PATH than a terminal.
        folders.addAll(['.local/bin', 'pathosam-qupath/.venv/' + inside].collect { String one -> new File(user, one) })
        folders
    }

    private static File runnable(File file) {
        List<File> tries = windows ? [new File(file.path + '.exe'), file] : [file]
        tries.find { File one -> one.file && one.canExecute() }
    }

}
