package pathosam

import groovy.transform.CompileStatic

import java.net.http.HttpClient
import java.net.http.HttpRequest
import java.net.http.HttpResponse
import java.time.Duration
import java.util.zip.GZIPInputStream

/**
 * Speaks to the server of pathosam-qupath. Knows nothing of QuPath.
 *
 * Coordinates are pixels of the full-resolution image. Every error is a PathosamException.
 *
 * <pre>
 * PathosamClient client = new PathosamClient(new ServerProcess(null, null, folder))
 * client.connect(progress)
 * String image = client.openImage(path: '/slides/one.svs')
 * Map job = client.run([kind: 'segment', image: image, regions: regions], progress)
 * client.result(job.id) { Map feature -> ... }
 * </pre>
 */
@CompileStatic
class PathosamClient {

    /** Versions of the protocol that this client speaks. */
    static final int OLDEST = 1
    static final int NEWEST = 1

    private static final String JSON = 'application/json'
    private static final String HEALTH_PATH = '/v1/health'
    private static final String JOBS = '/v1/jobs'
    private static final int STOP_SECONDS = 15
    private static final Duration QUICK = Duration.ofSeconds(5)
    private static final Duration PATIENT = Duration.ofSeconds(120)
    private static final int START_SECONDS = 180
    private static final double HEARTBEAT_SECONDS = 0.5
    private static final int OK_BELOW = 300
    private static final Set<String> UNKNOWN_THERE = ['not_found', 'outside_roots'] as Set
    private static final Set<Integer> STRANGERS = [401, 403, 404] as Set
    private static final Set<String> NOT_OURS = ['no_answer', 'stranger', 'unauthorized', 'foreign_host'] as Set

    final ServerProcess server
    private final int oldest
    private final int newest
    private final HttpClient http = HttpClient.newBuilder()
        .version(HttpClient.Version.HTTP_1_1).connectTimeout(QUICK).build()
    private String url
    private String token
    private int protocol

    PathosamClient(ServerProcess server, int oldest = OLDEST, int newest = NEWEST) {
        this.server = server
        this.oldest = oldest
        this.newest = newest
        this.protocol = newest
    }

    /**
     * Find the server, or start one, and wait until its model is there.
     *
     * @param words arguments of 'serve' in case one is started: --root, --model, --device
     * @return what the server says of itself: version, device, model, ...
     */
    Map<String, Object> connect(Progress progress = null, List<String> words = []) {
        Map<String, Object> health = answering()
        if (health == null) {
            progress?.report('Starting the PathoSAM server', -1)
            health = started(server.start(words), progress)
        }
        while (health.state == 'loading') {
            progress?.report('Loading the model', -1)
            stopIfAsked(progress)
            health = get(HEALTH_PATH + '?wait=1')
        }
        if (health.state == 'failed') {
            throw PathosamException.told(health.error as Map, 'model', 'the model could not be loaded', 'model_failed')
        }
        health
    }

    /** What a running server says of itself; null where none answers. Starts nothing. */
    Map<String, Object> answering() {
        Map<String, Object> state = server.state()
        if (state == null) {
            return null
        }
        url = state.url
        token = state.token
        negotiate(state.protocol as Map, state.version as String)
        Map<String, Object> health
        try {
            health = get(HEALTH_PATH, QUICK)
        } catch (PathosamException error) {
            // A file that outlived its server, or another program on its port: the same as none.
            if (error.code in NOT_OURS) {
                return null
            }
            throw error
        }
        negotiate(health.protocol as Map, health.version as String)
        health
    }

    Map<String, Object> health() {
        get(HEALTH_PATH, QUICK)
    }

    /** Have the server end, and wait until it has; whether there was one. */
    boolean shutdown() {
        if (answering() == null) {
            return false
        }
        post('/v1/shutdown', [:])
        long end = System.currentTimeMillis() + STOP_SECONDS * 1000L
        while (server.state() != null && System.currentTimeMillis() < end) {
            Thread.sleep(50)
        }
        server.state() == null
    }

    /** The models that the server can load by name. */
    List<Map<String, Object>> models() {
        (List<Map<String, Object>>) send('GET', '/v1/models', null, QUICK)
    }

    /** Have the server load another model; returns when it is there. */
    Map<String, Object> useModel(String name, Progress progress = null) {
        post('/v1/model', [name: name])
        connect(progress)
    }

    /** Have the server open an image: path or uri, series, rotation, crop, mpp; its id. */
    String openImage(Map<String, Object> request) {
        (String) post('/v1/images', request).image
    }

    /** Give the server the pixels of a rectangle: x, y, width, height, mpp, ...; the image's id. */
    String sendPixels(Map<String, Object> rectangle, byte[] picture, String type = 'image/png') {
        String query = rectangle.collect { String name, Object value -> "${name}=${value}" }.join('&')
        Map<String, Object> answer = (Map<String, Object>) send('POST', '/v1/images/pixels?' + query,
            picture, PATIENT, type)
        (String) answer.image
    }

    void closeImage(String image) {
        send('DELETE', '/v1/images/' + image, null, QUICK)
    }

    /** Submit a job; what the server says of it. */
    Map<String, Object> submit(Map<String, Object> request) {
        post(JOBS, request)
    }

    Map<String, Object> job(String id) {
        get("${JOBS}/${id}")
    }

    /** The server's jobs, the newest first. */
    List<Map<String, Object>> jobs() {
        (List<Map<String, Object>>) get(JOBS).jobs
    }

    /** Ask a job to stop; a job that has ended stays as it is. */
    Map<String, Object> cancel(String id) {
        (Map<String, Object>) send('DELETE', "${JOBS}/${id}", null, PATIENT)
    }

    /**
     * Submit a job and wait for its end.
     *
     * @param progress is told of tiles and nuclei; where it is cancelled, so is the job
     */
    Map<String, Object> run(Map<String, Object> request, Progress progress) {
        Map<String, Object> job = submit(request)
        Object seen = 0
        while (job.state == 'queued' || job.state == 'running') {
            if (progress?.cancelled) {
                cancel((String) job.id)
                throw PathosamException.cancelled()
            }
            job = get("${JOBS}/${job.id}?wait=${HEARTBEAT_SECONDS}&seen=${seen}")
            Map told = (Map) job.progress
            seen = told?.change ?: 0
            progress?.report(describe(job, told), (told?.fraction ?: -1) as double)
        }
        if (job.state == 'cancelled') {
            throw PathosamException.cancelled()
        }
        if (job.state == 'failed') {
            throw PathosamException.told(job.error as Map, 'job', 'it failed', 'job_failed')
        }
        job
    }

    /** Hand over the features of a finished job one by one; how many there were. */
    int result(String id, Closure consumer) {
        HttpRequest request = prepared("${JOBS}/${id}/result", PATIENT)
            .header('Accept-Encoding', 'gzip').GET().build()
        HttpResponse<InputStream> response = ask(request)
        InputStream body = plain(response)
        try {
            if (response.statusCode() >= OK_BELOW) {
                throw refused(response.statusCode(), body.getText('UTF-8'))
            }
            return Json.features(new InputStreamReader(body, 'UTF-8'), consumer)
        } catch (IOException error) {
            throw gone(error)
        } finally {
            body.close()
        }
    }

    /** One feature for each prompt (points and labels, box, geometry), in their order. */
    List<Map<String, Object>> prompt(String image, List<Map<String, Object>> prompts,
            Map<String, Object> options = [:]) {
        (List<Map<String, Object>>) post('/v1/prompt', [image: image, prompts: prompts, options: options]).features
    }

    /** Ids of those detections of recorded runs that nobody has edited; null: the server cannot tell. */
    Set<String> untouched(String project, String entry, List<Map<String, Object>> features) {
        Map<String, Object> objects = [type: 'FeatureCollection', features: features]
        try {
            return (post('/v1/untouched', [project: project, entry: entry, objects: objects])
                .untouched as List<String>) as Set
        } catch (PathosamException error) {
            if (error.code in UNKNOWN_THERE) {
                return null
            }
            throw error
        }
    }

    /**
     * Have it noted that nuclei of a recorded run were taken out of the open image again, so that nobody counts
     * them as deleted. A server that knows no such run notes nothing.
     *
     * @param undone true: the run itself was taken back; false: a later one replaced them
     */
    void withdrawn(String run, String project, String entry, Collection<String> ids, boolean undone) {
        try {
            post("/v1/runs/${run}/withdrawn", [project: project, entry: entry, ids: ids, undone: undone])
        } catch (PathosamException error) {
            if (!(error.code in UNKNOWN_THERE)) {
                throw error
            }
        }
    }

    private Map<String, Object> started(Process process, Progress progress) {
        long begin = System.currentTimeMillis()
        while (System.currentTimeMillis() - begin < START_SECONDS * 1000L) {
            Map<String, Object> health = answering()
            if (health != null) {
                return health
            }
            if (!process.alive) {
                // A second server gives way to the first: then that one answers.
                health = answering()
                if (health != null) {
                    return health
                }
                throw new PathosamException('server', "it ended at once: ${server.lastWords()}",
                    "Its whole output is in ${server.log}. Extensions > PathoSAM > Check set-up may tell more.",
                    'not_started')
            }
            stopIfAsked(progress)
            Thread.sleep(100)
        }
        process.destroy()
        throw new PathosamException('server', "it did not answer within ${START_SECONDS} seconds",
            "Its output is in ${server.log}. Try again; the first start on a machine is the slowest.", 'not_started')
    }

    private void negotiate(Map range, String version) {
        if (range == null) {
            return
        }
        int low = range.min as int
        int high = range.max as int
        if (low > newest) {
            throw new PathosamException("server ${version ?: ''}".trim(),
                "it speaks protocol ${low} to ${high}, these scripts speak ${oldest} to ${newest}: they are too old",
                'Take the groovy_scripts folder that belongs to the installed pathosam-qupath, and run ' +
                'install_menu.groovy from there.', 'old_client')
        }
        if (high < oldest) {
            throw new PathosamException("server ${version ?: ''}".trim(),
                "it speaks protocol ${low} to ${high}, these scripts speak ${oldest} to ${newest}: it is too old",
                'Update pathosam-qupath (git pull and python3 run.py setup, or pip install --upgrade), end the ' +
                'running server and try again.', 'old_server')
        }
        protocol = Math.min(high, newest)
    }

    private static void stopIfAsked(Progress progress) {
        if (progress?.cancelled) {
            throw PathosamException.cancelled()
        }
    }

    private static String describe(Map job, Map told) {
        if (job.state == 'queued') {
            return "Waiting for ${job.position ?: 0} earlier jobs"
        }
        StringBuilder said = new StringBuilder(((told?.stage ?: 'working') as String).capitalize())
        if (told?.tiles_total) {
            said.append(": ${told.tiles_done} of ${told.tiles_total} tiles")
        }
        if (told?.nuclei) {
            said.append(", ${told.nuclei} nuclei")
        }
        if (told?.eta_seconds != null) {
            said.append(", ${Math.round(told.eta_seconds as double)} s left")
        }
        said.toString()
    }

    private Map<String, Object> get(String path, Duration timeout = PATIENT) {
        (Map<String, Object>) send('GET', path, null, timeout)
    }

    private Map<String, Object> post(String path, Map<String, Object> body) {
        (Map<String, Object>) send('POST', path, Json.write(body).getBytes('UTF-8'), PATIENT)
    }

    private Object send(String method, String path, byte[] body, Duration timeout, String type = JSON) {
        HttpRequest.Builder builder = prepared(path, timeout)
        if (body == null) {
            builder.method(method, HttpRequest.BodyPublishers.noBody())
        } else {
            builder.header('Content-Type', type).method(method, HttpRequest.BodyPublishers.ofByteArray(body))
        }
        HttpResponse<InputStream> response = ask(builder.build())
        String answer
        try {
            answer = plain(response).getText('UTF-8')
        } catch (IOException error) {
            throw gone(error)
        }
        if (response.statusCode() >= OK_BELOW) {
            throw refused(response.statusCode(), answer)
        }
        answer ? Json.parse(answer) : [:]
    }

    private HttpRequest.Builder prepared(String path, Duration timeout) {
        if (url == null && answering() == null) {
            throw new PathosamException('server', 'none answers', 'Run it again: it will be started.', 'no_server')
        }
        HttpRequest.newBuilder(URI.create(url + path)).timeout(timeout)
            .header('Authorization', 'Bearer ' + token)
            .header('X-PathoSAM-Protocol', protocol.toString())
    }

    private HttpResponse<InputStream> ask(HttpRequest request) {
        try {
            return http.send(request, HttpResponse.BodyHandlers.ofInputStream())
        } catch (IOException error) {
            throw gone(error)
        } catch (InterruptedException ignored) {
            Thread.currentThread().interrupt()
            throw PathosamException.cancelled()
        }
    }

    private static InputStream plain(HttpResponse<InputStream> response) {
        boolean packed = response.headers().firstValue('Content-Encoding').orElse('') == 'gzip'
        packed ? new GZIPInputStream(response.body()) : response.body()
    }

    private PathosamException gone(IOException error) {
        new PathosamException("server at ${url}", "it does not answer (${error.message ?: error.class.simpleName})",
            "Run it again: a new server will be started. If it ends again, ${server.log} tells why.", 'no_answer')
    }

    private static PathosamException refused(int status, String answer) {
        Map error = null
        try {
            Object read = Json.parse(answer)
            error = read instanceof Map ? (Map) read.error : null
        } catch (PathosamException ignored) {
            error = null
        }
        if (error == null && status in STRANGERS) {
            return new PathosamException('server', "something else answers on its port (status ${status})",
                'Try again: a server will be started on another port.', 'stranger')
        }
        PathosamException.told(error, 'server', "it answered with status ${status}", "status_${status}")
    }

}
