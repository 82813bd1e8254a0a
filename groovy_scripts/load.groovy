// Gives the scripts of this folder their classes, compiled once per QuPath session (and again
// after the files change): evaluate(new File(folder, 'load.groovy')).call('segment_selected')
import org.codehaus.groovy.control.CompilerConfiguration

File folder = new File(this.class.protectionDomain.codeSource.location.toURI()).parentFile
List<String> words = binding.hasVariable('args') ? (binding.getVariable('args') ?: []) as List<String> : []
Object context = binding.hasVariable('pathosam.context') ? binding.getVariable('pathosam.context') : null

long changed = new File(folder, 'pathosam').listFiles()*.lastModified().max()
String key = 'pathosam.classes'
// Scripts share nothing with each other but the Java machine's own map.
Map.Entry known = (Map.Entry) System.properties.get(key)
String stamp = "${folder} ${changed}"
if (known?.key != stamp) {
    CompilerConfiguration configuration = new CompilerConfiguration(sourceEncoding: 'UTF-8')
    GroovyClassLoader loader = new GroovyClassLoader(this.class.classLoader, configuration)
    loader.addClasspath(folder.path)
    known = new MapEntry(stamp, loader)
    System.properties.put(key, known)
}
ClassLoader classes = (ClassLoader) known.value

return { String name ->
    Class actions = classes.loadClass('pathosam.Actions')
    context == null ? actions.run(name, folder, words) : actions.run(name, context)
}
