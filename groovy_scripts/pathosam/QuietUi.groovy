package pathosam

import qupath.fx.utils.FXUtils
import qupath.lib.gui.QuPathGUI
import qupath.lib.objects.classes.PathClass

import java.util.concurrent.Callable

/** QuPath has a window, but the script asks nothing: hierarchies are changed on its thread. */
class QuietUi extends ConsoleUi {

    // Not by its class: Groovy resolves the names of an inherited field in the heir, which has no such import.
    protected final Object gui = QuPathGUI.instance

    /** QuPath's own helper logs what is thrown there and goes on; here it is thrown again. */
    @Override
    @SuppressWarnings('CatchException')
    Object change(Closure work) {
        Exception failure = null
        Object result = null
        FXUtils.callOnApplicationThread({
            try {
                result = work()
            } catch (Exception error) {
                failure = error
            }
        } as Callable)
        if (failure != null) {
            throw failure
        }
        result
    }

    @Override
    void listClasses(Collection classes) {
        List<PathClass> unlisted = classes.findAll { PathClass one -> !gui.availablePathClasses.contains(one) } as List
        change { gui.availablePathClasses.addAll(unlisted) }
    }

}
