package pathosam

import javafx.event.ActionEvent
import javafx.event.EventHandler
import javafx.scene.Node
import javafx.scene.control.ButtonType
import org.controlsfx.dialog.ProgressDialog
import qupath.fx.dialogs.Dialogs
import qupath.lib.gui.tools.GuiTools
import qupath.lib.gui.viewer.QuPathViewer
import qupath.lib.images.ImageData
import qupath.lib.plugins.parameters.ParameterList
import qupath.lib.projects.ProjectImageEntry

/** QuPath's own dialogs and notifications. */
class QuPathUi extends QuietUi {

    @Override
    void tell(String title, String text) {
        Dialogs.showInfoNotification(title, text)
    }

    @Override
    void show(String title, String text) {
        change { Dialogs.showTextWindow(gui.stage, title, text, javafx.stage.Modality.NONE, false) }
    }

    @Override
    void fail(String title, PathosamException error) {
        change { Dialogs.showErrorMessage(title, "${error.subject}: ${error.reason}.\n\n${error.remedy}".toString()) }
    }

    @Override
    boolean confirm(String title, String text) {
        change { Dialogs.showConfirmDialog(title, text) }
    }

    @Override
    String choose(String title, String text, List<String> choices, String preset) {
        change { Dialogs.showChoiceDialog(title, text, choices, preset) }
    }

    @Override
    Map<String, String> edit(String title, List<List<String>> rows) {
        ParameterList list = new ParameterList()
        rows.each { List<String> row ->
            if (row.size() > 4) {
                list.addChoiceParameter(row[0], row[1], row[2], row[4].split('[|]') as List, row[3])
            } else {
                list.addStringParameter(row[0], row[1], row[2], row[3])
            }
        }
        boolean kept = change { GuiTools.showParameterDialog(title, list) }
        kept ? rows.collectEntries { List<String> row ->
            [row[0], row.size() > 4 ? list.getChoiceParameterValue(row[0]) : list.getStringParameterValue(row[0])]
        } : null
    }

    @Override
    Object working(String title, Closure work) {
        change {
            Work task = new Work(work)
            ProgressDialog dialog = new ProgressDialog(task)
            dialog.initOwner(gui.stage)
            dialog.title = title
            dialog.dialogPane.headerText = title
            dialog.dialogPane.graphic = null
            dialog.dialogPane.buttonTypes.add(ButtonType.CANCEL)
            Node button = dialog.dialogPane.lookupButton(ButtonType.CANCEL)
            // The dialog closes when the work has ended, not when it is asked to.
            button.addEventFilter(ActionEvent.ACTION, { ActionEvent event ->
                task.stop()
                dialog.headerText = 'Cancelling...'
                button.disable = true
                event.consume()
            } as EventHandler)
            Thread thread = new Thread(task, 'pathosam')
            thread.daemon = true
            thread.start()
            dialog.showAndWait()
            task.outcome()
        }
    }

    @Override
    boolean saveOpen(Object project) {
        Map<ProjectImageEntry, ImageData> unsaved = open(project).findAll { QuPathViewer one -> one.imageData.changed }
            .collectEntries { QuPathViewer one -> [project.getEntry(one.imageData), one.imageData] }
        if (unsaved && !confirm('PathoSAM', "Save ${unsaved.keySet()*.imageName.join(', ')} first?")) {
            return false
        }
        unsaved.each { ProjectImageEntry entry, ImageData data -> entry.saveImageData(data) }
        project.syncChanges()
        true
    }

    @Override
    void reloadOpen(Object project) {
        change {
            open(project).each { QuPathViewer one -> one.imageData = project.getEntry(one.imageData).readImageData() }
            gui.refreshProject()
        }
    }

    private List<QuPathViewer> open(Object project) {
        gui.allViewers.findAll { QuPathViewer one ->
            one.imageData != null && project.getEntry(one.imageData) != null
        } as List<QuPathViewer>
    }

}
