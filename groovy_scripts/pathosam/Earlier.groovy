package pathosam

import groovy.transform.CompileStatic
import org.locationtech.jts.algorithm.locate.IndexedPointInAreaLocator
import org.locationtech.jts.geom.Coordinate
import org.locationtech.jts.geom.Geometry
import org.locationtech.jts.geom.Location
import qupath.lib.objects.PathObject
import qupath.lib.objects.hierarchy.PathObjectHierarchy

/**
 * What becomes of the nuclei that earlier runs of this tool left in a region: those that
 * nobody has edited make room, the others stay. Objects without a run's mark are not ours.
 *
 * Nuclei that these scripts wrote carry a fingerprint. Those of a run over the project do
 * not; the server compares them with the run's record, and where it cannot, they stay.
 */
class Earlier {

    /** Detections to take out. */
    final List<PathObject> go = []

    /** Marked detections that stay. */
    final List<PathObject> stay = []

    /** How many of those lie in the region. */
    int stayInside

    static Earlier inside(Context context, PathosamClient client, Map<String, Object> regions) {
        List<Geometry> areas = regions.features.collect { Map one -> Regions.shape(one.geometry) }
        List<PathObject> marked = marked(context.hierarchy)
        List<PathObject> inside = within(marked, areas)
        Set<PathObject> untouched = untouched(context, client, inside) as Set
        Earlier earlier = new Earlier()
        marked.each { PathObject one -> (untouched.contains(one) ? earlier.go : earlier.stay) << one }
        earlier.stayInside = inside.size() - earlier.go.size()
        earlier
    }

    /** Those of marked detections that nobody has edited, as far as it can be known. */
    static List<PathObject> untouched(Context context, PathosamClient client, List<PathObject> marked) {
        List<PathObject> known = marked.findAll { PathObject one -> Nuclei.untouched(one) }
        List<PathObject> asked = marked.findAll { PathObject one ->
            Nuclei.plain(one) && !Nuclei.fingerprinted(one) && Nuclei.run(one) != Nuclei.PROMPT
        }
        if (asked.empty || context.entry == null) {
            return known
        }
        Set<String> ids = client.untouched(context.projectPath, context.entry.ID,
            asked.collect { PathObject one -> feature(one) })
        ids == null ? known : known + asked.findAll { PathObject one -> one.ID.toString() in ids }
    }

    /** All detections of a hierarchy that carry a run's mark. */
    @CompileStatic
    static List<PathObject> marked(PathObjectHierarchy hierarchy) {
        hierarchy.detectionObjects.findAll { PathObject one -> Nuclei.run(one) != null } as List<PathObject>
    }

    @CompileStatic
    private static List<PathObject> within(List<PathObject> objects, List<Geometry> areas) {
        List<IndexedPointInAreaLocator> locators = areas.collect { Geometry one -> new IndexedPointInAreaLocator(one) }
        objects.findAll { PathObject one ->
            Coordinate centre = new Coordinate(one.ROI.centroidX, one.ROI.centroidY)
            locators.any { IndexedPointInAreaLocator area -> area.locate(centre) != Location.EXTERIOR }
        }
    }

    private static Map<String, Object> feature(PathObject object) {
        [type: 'Feature', id: object.ID.toString(), geometry: Regions.json(object.ROI.geometry), properties: [
            run: Nuclei.run(object), classification: object.pathClass?.toString(), locked: object.locked,
            name: object.name, color: object.color, children: object.hasChildObjects(),
        ]]
    }

}
