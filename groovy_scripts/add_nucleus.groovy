// Adds the nucleus at each selected point, or in the selected rectangle.
import java.util.prefs.Preferences

// QuPath tells a script its file, unless it is run from an unsaved tab; install_menu.groovy
// remembers the folder for that case.
List<String> places = [
    binding.hasVariable('qupath.script.file') ? new File((String) binding.getVariable('qupath.script.file')).parent : null,
    Preferences.userRoot().node('pathosam-qupath').get('scripts', null),
]
String folder = places.find { String it -> it && new File(it, 'load.groovy').file }
if (folder == null) {
    throw new FileNotFoundException('load.groovy: run install_menu.groovy from the groovy_scripts folder once, then try again')
}
evaluate(new File(folder, 'load.groovy')).call('add_nucleus')
