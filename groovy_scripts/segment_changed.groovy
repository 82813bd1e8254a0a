// Segments again where the model of the settings finds other nuclei than the runs did.
import java.util.prefs.Preferences

// QuPath tells a script its file, unless it is run from an unsaved tab; install_menu.groovy
// remembers the folder for that case.
String own = 'qupath.script.file'
List<String> places = [
    binding.hasVariable(own) ? new File((String) binding.getVariable(own)).parent : null,
    Preferences.userRoot().node('pathosam-qupath').get('scripts', null),
]
String folder = places.find { String one -> one && new File(one, 'load.groovy').file }
if (folder == null) {
    throw new FileNotFoundException('load.groovy: run install_menu.groovy of the groovy_scripts folder once')
}
evaluate(new File(folder, 'load.groovy')).call('segment_changed')
