package pathosam

import groovy.transform.CompileStatic
import qupath.lib.measurements.MeasurementList
import qupath.lib.objects.PathObject
import qupath.lib.objects.PathROIObject
import qupath.lib.objects.hierarchy.PathObjectHierarchy
import qupath.lib.objects.hierarchy.events.PathObjectSelectionModel
import qupath.lib.roi.interfaces.ROI

/**
 * A change of a hierarchy that is made, and can be undone, in one event.
 *
 * Objects are put under the parents that are named; nothing else of the hierarchy is touched.
 * The last change of each open hierarchy is remembered; it must not hold the hierarchy, or
 * neither would ever be let go.
 */
@CompileStatic
class Changes {

    private static final Map<PathObjectHierarchy, Changes> LAST = Collections.synchronizedMap(new WeakHashMap<>())

    final String run
    private final Map<PathObject, PathObject> added = [:]
    private final Map<PathObject, PathObject> removed = [:]
    private final Map<PathROIObject, List<Object>> shapes = [:]

    Changes(String run) {
        this.run = run
    }

    /** The last change that was made to a hierarchy in this session, or null. */
    static Changes last(PathObjectHierarchy hierarchy) {
        LAST.get(hierarchy)
    }

    static void forget(PathObjectHierarchy hierarchy) {
        LAST.remove(hierarchy)
    }

    /** Have an object put under a parent; under the root where that is null. */
    void add(PathObject object, PathObject parent) {
        added.put(object, parent)
    }

    void remove(PathObject object) {
        removed.put(object, object.parent)
    }

    /** Give an object another outline and, with it, other measurements. */
    void reshape(PathROIObject object, ROI shape, Map<String, Double> measurements) {
        shapes.put(object, [shape, measurements])
    }

    int getAddedCount() {
        added.size()
    }

    int getRemovedCount() {
        removed.size()
    }

    int getReshapedCount() {
        shapes.size()
    }

    Collection<PathObject> getAddedObjects() {
        added.keySet()
    }

    Collection<PathObject> getRemovedObjects() {
        removed.keySet()
    }

    /** Make the change, in one event. */
    void apply(PathObjectHierarchy hierarchy) {
        takeOut(hierarchy, removed.keySet())
        putIn(hierarchy, added)
        shapes.replaceAll { PathROIObject object, List<Object> wanted -> swap(object, wanted) }
        LAST.put(hierarchy, this)
        hierarchy.fireHierarchyChangedEvent(this)
    }

    /**
     * Take the change back where the person has not gone on from it, in one event: what was
     * added and is still as it was goes, what was removed comes back, outlines are as before.
     *
     * @return how many of the added stay because they were edited
     */
    int undo(PathObjectHierarchy hierarchy) {
        List<PathObject> ours = added.keySet().findAll { PathObject one -> one.parent != null } as List<PathObject>
        Collection<PathObject> go = ours.findAll { PathObject one -> unedited(one) }
        takeOut(hierarchy, go)
        putIn(hierarchy, removed.findAll { PathObject object, PathObject parent ->
            object.parent == null && inHierarchy(hierarchy, parent)
        } as Map<PathObject, PathObject>)
        shapes.each { PathROIObject object, List<Object> before -> swap(object, before) }
        LAST.remove(hierarchy)
        hierarchy.fireHierarchyChangedEvent(this)
        ours.size() - go.size()
    }

    private static void takeOut(PathObjectHierarchy hierarchy, Collection<PathObject> objects) {
        deselect(hierarchy.selectionModel, objects as Set<PathObject>)
        objects.groupBy { PathObject one -> one.parent }.each { PathObject parent, List<PathObject> children ->
            parent?.removeChildObjects(children)
        }
    }

    /**
     * Not by QuPath's deselectObjects: where nothing else is selected it goes on naming the object
     * that is gone as the selected one, and the next click puts it back.
     */
    private static void deselect(PathObjectSelectionModel model, Set<PathObject> gone) {
        PathObject main = model.selectedObject
        Set<PathObject> rest = model.selectedObjects - gone
        model.setSelectedObjects(rest, gone.contains(main) ? rest.find() : main)
    }

    private static void putIn(PathObjectHierarchy hierarchy, Map<PathObject, PathObject> objects) {
        objects.keySet().groupBy { PathObject one -> objects.get(one) ?: hierarchy.rootObject }
            .each { PathObject parent, Collection<PathObject> children -> parent.addChildObjects(children) }
    }

    private static List<Object> swap(PathROIObject object, List<Object> wanted) {
        Map<String, Double> measured = [:]
        MeasurementList list = object.measurementList
        object.measurements.each { String name, Number value -> measured.put(name, value.doubleValue()) }
        List<Object> before = [object.ROI, measured]
        object.ROI = (ROI) wanted[0]
        ((Map<String, Double>) wanted[1]).each { String name, Double value -> list.put(name, value) }
        list.close()
        before
    }

    private static boolean inHierarchy(PathObjectHierarchy hierarchy, PathObject object) {
        PathObject top = object
        while (top.parent != null) {
            top = top.parent
        }
        top.is(hierarchy.rootObject)
    }

    private static boolean unedited(PathObject object) {
        Nuclei.plain(object) && Nuclei.asWritten(object)
    }

}
