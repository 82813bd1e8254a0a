// Settings in a plain store; prints `name: JSON` for each thing that the tests look at.
import pathosam.Json
import pathosam.PathosamException
import pathosam.Settings

void tell(String name, Object value) {
    println "${name}: ${Json.write(value)}"
}

Map failure(Closure work) {
    try {
        return [value: work()]
    } catch (PathosamException error) {
        return [subject: error.subject, cause: error.reason, remedy: error.remedy, code: error.code]
    }
}

Settings settings(Map<String, String> store, Map<String, String> given = [:]) {
    new Settings(store, given)
}

Settings fresh = settings([:])
tell 'defaults', Settings.DEFAULTS.keySet().collectEntries { String key -> [key, fresh.get(key)] }
tell 'nothing_set', [mpp: fresh.mpp, classes: fresh.classNames, home: fresh.home]

Map<String, String> store = [device: 'cpu']
Settings kept = settings(store)
kept.set('mpp', ' 0,25 ')
kept.set('model', 'ours')
kept.set('device', '')
tell 'stored', store
tell 'read_again', [model: settings(store).get('model'), mpp: settings(store).mpp, device: settings(store).get('device')]
tell 'given_once', [settings(store, [model: 'other']).get('model'), settings(store).get('model')]
tell 'folder', settings([home: '/there']).home.path

tell 'classes', settings([classes: 'Epithelial = Tumor; Connective= ;\n Inflammatory = - ;']).classNames
['many', '0', '-1'].eachWithIndex { String text, int i ->
    tell "wrong_size_${i}", failure { settings([mpp: text]).mpp }
}
tell 'wrong_classes', failure { settings([classes: 'Epithelial']).classNames }
