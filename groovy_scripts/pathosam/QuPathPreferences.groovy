package pathosam

import javafx.beans.property.StringProperty
import qupath.lib.gui.prefs.PathPrefs

/** Settings in QuPath's own preferences, where they outlive QuPath. */
class QuPathPreferences extends AbstractMap<String, String> {

    private final Map<String, StringProperty> properties =
        Settings.DEFAULTS.collectEntries { String key, String preset ->
            [key, PathPrefs.createPersistentPreference('pathosam.' + key, preset)]
        }

    @Override
    String get(Object key) {
        properties[(String) key]?.get()
    }

    @Override
    String put(String key, String value) {
        String before = get(key)
        properties[key].set(value)
        before
    }

    @Override
    Set<Map.Entry<String, String>> entrySet() {
        properties.collectEntries { String key, StringProperty value -> [key, value.get()] }.entrySet()
    }

}
