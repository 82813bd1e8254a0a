// The client against real servers; prints `name: JSON` for each thing that the tests look at.
// Arguments: folder for the server's state, executable, folder of images, model for prompts.
import pathosam.Json
import pathosam.PathosamClient
import pathosam.PathosamException
import pathosam.Progress
import pathosam.ServerProcess

class Watch implements Progress {

    final List<String> messages = []
    final List<Double> fractions = []
    Closure<Boolean> wish = { false }

    void report(String message, double fraction) {
        messages << message
        fractions << fraction
    }

    boolean isCancelled() {
        wish(this)
    }

}

void tell(String name, Object value) {
    println "${name}: ${Json.write(value)}"
}

Map failure(Closure work) {
    try {
        work()
        return [code: 'none']
    } catch (PathosamException error) {
        return [subject: error.subject, cause: error.reason, remedy: error.remedy, code: error.code]
    }
}

File home = new File(args[0])
String executable = args[1]
File images = new File(args[2])
String tiny = args[3]
String tissue = new File(images, 'ihc.png').path
List<String> words = ['--port', '0', '--device', 'cpu', '--root', images.path]

// Nothing runs yet.
tell 'no_executable', failure { new ServerProcess(home, '/no/such/program', null).find() }
tell 'never', failure { new PathosamClient(new ServerProcess(home, 'none', null)).connect() }
ServerProcess server = new ServerProcess(home, executable, null)
PathosamClient client = new PathosamClient(server)
tell 'silence', client.answering()
tell 'fails_to_start', failure { client.connect(null, ['--model', 'no-such-model.safetensors']) }
client.shutdown()

// Start, handshake.
Watch start = new Watch()
tell 'health', client.connect(start, words)
tell 'start_messages', start.messages.unique()
tell 'state', server.state()
tell 'found_again', new PathosamClient(server).answering().state
tell 'models', client.models()*.name

// A job with progress, and its result.
String image = client.openImage(path: tissue, mpp: 0.6d)
tell 'same_image', client.openImage(path: tissue, mpp: 0.6d) == image
String region = '6a3f0e0e-7a43-4a7f-9a3c-0d3f2f6f9d11'
Map square = [type: 'FeatureCollection', features: [[type: 'Feature', id: region, properties: [:], geometry: [
    type: 'Polygon', coordinates: [[[20, 20], [280, 20], [280, 280], [20, 280], [20, 20]]]]]]]
Watch watch = new Watch()
Map job = client.run([kind: 'segment', image: image, regions: square,
    options: [classes: [Inflammatory: false, Connective: 'Stroma']]], watch)
List<Map> features = []
tell 'handed_over', client.result(job.id) { Map one -> features << one }
tell 'job', job
tell 'fractions', watch.fractions
tell 'messages', watch.messages.unique()
tell 'feature', features.first()
tell 'ids', features*.id.unique().size()
tell 'parents', features*.get('properties')*.parent.unique()
tell 'classes', features*.get('properties')*.classification*.name.unique().sort()

// The same from pixels that are sent.
String sent = client.sendPixels([x: 100, y: 50, width: 512, height: 512, mpp: 0.6d],
    new File(images, 'ihc.png').bytes)
tell 'sent', client.run([kind: 'segment', image: sent], null).state
client.closeImage(sent)
tell 'closed', failure { client.run([kind: 'segment', image: sent], null) }

// Cancel, as soon as the job says anything; magnified, the image takes many tiles.
String large = client.openImage(path: tissue, mpp: 3.2d)
Watch impatient = new Watch(wish: { Watch one -> !one.messages.empty })
tell 'cancelled', failure { client.run([kind: 'segment', image: large], impatient) }
long asked = System.currentTimeMillis()
while (client.jobs().first().state == 'running' && System.currentTimeMillis() - asked < 60000) {
    Thread.sleep(100)
}
tell 'cancelled_state', client.jobs().first().state

// What it may not do.
tell 'outside', failure { client.openImage(path: '/etc/hosts') }
tell 'invalid', failure { client.submit([kind: 'segment', image: image, nonsense: 1]) }
tell 'unknown_job', failure { client.job('job-0000000000000000') }
tell 'unknown_run', failure { client.withdrawn('20260101-000000-abcd', '/etc/project.qpproj', '1', [region], true) }

// Versions.
tell 'old_client', failure { new PathosamClient(server, 0, 0).connect() }
tell 'new_client', failure { new PathosamClient(server, 2, 3).connect() }
PathosamClient stubborn = new PathosamClient(server)
stubborn.answering()
stubborn.protocol = 9
tell 'refused_protocol', failure { stubborn.models() }

// A wrong token is no handshake.
File other = new File(home.parentFile, 'other')
other.mkdirs()
new File(other, 'server.json').text = Json.write(server.state() + [token: 'x' * 43])
PathosamClient stranger = new PathosamClient(new ServerProcess(other, 'none', null))
tell 'stranger', stranger.answering()
tell 'wrong_token', failure { stranger.openImage(path: tissue) }

// The server dies in the middle of a job; the next use starts another.
int pid = server.state().pid as int
Watch killer = new Watch(wish: { Watch one ->
    if (one.messages.any { String said -> said.contains('tiles') || said.contains('Starting') }) {
        ProcessHandle.of(pid).ifPresent { ProcessHandle process -> process.destroyForcibly() }
    }
    false
})
tell 'killed', failure { client.run([kind: 'segment', image: large], killer) }
tell 'stale_file', server.state() != null
tell 'stale_answer', new PathosamClient(server).answering()
Map again = client.connect(null, words + ['--model', tiny])
tell 'again', [state: again.state, prompts: again.model.prompts]

// Prompts, with a model that answers them.
String anew = client.openImage(path: tissue, mpp: 0.25d)
List<Map> answers = client.prompt(anew, [[points: [[150, 150]], labels: [1]], [box: [100, 100, 140, 140]],
    [geometry: square.features[0].geometry]])
tell 'answers', answers
tell 'no_prompts', failure { client.prompt(anew, []) }

tell 'ended', client.shutdown()
tell 'gone', failure { client.health() }
