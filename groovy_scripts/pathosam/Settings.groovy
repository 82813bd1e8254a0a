package pathosam

import groovy.transform.CompileStatic

/**
 * What a person sets once. Values are texts; they live in a store (QuPath's preferences, or a
 * plain map where there are none).
 */
@CompileStatic
class Settings {

    /** Keys with their defaults: with these nothing needs to be set on a machine that has one install. */
    static final Map<String, String> DEFAULTS = [
        executable: '', model: 'bundled', device: 'auto', mode: 'ais', classes: '', mpp: '', home: '',
    ].asImmutable()

    private static final String UNNAMED = '-'

    private final Map<String, String> store
    private final Map<String, String> given

    /**
     * @param store where values are kept
     * @param given values that count for this once: the arguments of a script
     */
    Settings(Map<String, String> store, Map<String, String> given = [:]) {
        this.store = store
        this.given = given
    }

    String get(String key) {
        given.get(key) ?: store.get(key) ?: DEFAULTS[key]
    }

    void set(String key, String value) {
        store.put(key, value?.trim() ?: '')
    }

    /** The folder of the server's state, or null for the usual one. */
    File getHome() {
        get('home') ? new File(get('home')) : null
    }

    /** Micrometres per pixel that count instead of the image's own; null: the image's own. */
    Double getMpp() {
        String text = get('mpp')
        if (!text) {
            return null
        }
        try {
            double value = Double.parseDouble(text.replace(',', '.'))
            if (value > 0) {
                return value
            }
        } catch (NumberFormatException ignored) {
            throw broken(text)
        }
        throw broken(text)
    }

    /**
     * What the model's classes are called in the project: 'Epithelial = Tumor; Connective ='.
     *
     * A class with nothing after the sign is left unclassified, one with '-' is left out.
     */
    Map<String, Object> getClassNames() {
        Map<String, Object> names = [:]
        for (String part : get('classes').split('[;\n]')) {
            if (part.trim()) {
                List<String> sides = part.split('=', 2)*.trim()
                if (sides.size() != 2 || !sides[0]) {
                    throw new PathosamException("classes '${part.trim()}'", 'expected MODEL CLASS = PROJECT CLASS',
                        'Correct the classes in Extensions > PathoSAM > Settings, for example: ' +
                        'Epithelial = Tumor; Connective = Stroma', 'settings')
                }
                names[sides[0]] = sides[1] == UNNAMED ? (Object) false : (Object) (sides[1] ?: null)
            }
        }
        names
    }

    private static PathosamException broken(String text) {
        new PathosamException("pixel size '${text}'", 'expected a positive number of micrometres per pixel',
            'Correct it in Extensions > PathoSAM > Settings, or leave it empty to use the image\'s own.', 'settings')
    }

}
