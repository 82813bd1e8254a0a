package pathosam

import javafx.event.ActionEvent
import javafx.event.EventHandler
import javafx.scene.control.MenuItem
import javafx.scene.control.SeparatorMenuItem
import qupath.fx.dialogs.Dialogs
import qupath.fx.utils.FXUtils
import qupath.lib.gui.QuPathGUI

/** The menu Extensions > PathoSAM. */
class Menu {

    private static final String PLACE = 'Menu.Extensions>PathoSAM'

    static void install(File scripts) {
        List<MenuItem> items = Actions.ORDER.collect { String name ->
            name == null ? new SeparatorMenuItem() : item(name, scripts)
        }
        FXUtils.runOnApplicationThread {
            QuPathGUI.instance.getMenu(PLACE, true).items.setAll(items)
        }
    }

    // The last place where anything unforeseen can still be shown.
    @SuppressWarnings('CatchException')
    private static MenuItem item(String name, File scripts) {
        String label = Actions.LABELS[name]
        MenuItem item = new MenuItem(label)
        item.onAction = { ActionEvent event ->
            try {
                Actions.run(name, scripts, [])
            } catch (Exception error) {
                Dialogs.showErrorMessage(label, error)
            }
        } as EventHandler
        item
    }

}
