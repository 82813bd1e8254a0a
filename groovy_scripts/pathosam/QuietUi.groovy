package pathosam

import qupath.fx.utils.FXUtils
import qupath.lib.gui.QuPathGUI
import qupath.lib.objects.classes.PathClass

import java.util.concurrent.Callable

/** QuPath has a window, but the script asks nothing: hierarchies are changed on its thread. */
class QuietUi extends ConsoleUi {

    protected final QuPathGUI gui = QuPathGUI.instance

    @Override
    Object change(Closure work) {
        FXUtils.callOnApplicationThread(work as Callable)
    }

    @Override
    void listClasses(Collection classes) {
        List<PathClass> unlisted = classes.findAll { PathClass one -> !gui.availablePathClasses.contains(one) } as List
        change { gui.availablePathClasses.addAll(unlisted) }
    }

}
