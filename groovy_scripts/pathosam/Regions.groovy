package pathosam

import org.locationtech.jts.geom.Coordinate
import org.locationtech.jts.geom.Geometry
import org.locationtech.jts.geom.GeometryFactory
import org.locationtech.jts.geom.LinearRing
import org.locationtech.jts.geom.Polygon
import qupath.lib.objects.PathObject
import qupath.lib.objects.hierarchy.PathObjectHierarchy

/** Annotations as the regions that the server treats. */
class Regions {

    private static final String IGNORE = 'Ignore*'
    private static final GeometryFactory SHAPES = new GeometryFactory()

    /** The selected annotations that have an area. */
    static List<PathObject> selected(PathObjectHierarchy hierarchy) {
        List<PathObject> found = hierarchy.selectionModel.selectedObjects.toList()
            .findAll { PathObject one -> treatable(one) }
        if (found.empty) {
            throw new PathosamException('annotations', 'none with an area is selected',
                'Draw one around what is to be segmented, select it, and try again.', 'no_annotation')
        }
        found
    }

    /** The annotations of a class (derived classes too), or all that have an area. */
    static List<PathObject> ofClass(PathObjectHierarchy hierarchy, String name) {
        List<PathObject> found = hierarchy.annotationObjects.toList().findAll { PathObject one ->
            treatable(one) && (name == null || named(one, name))
        }
        if (found.empty) {
            throw new PathosamException('annotations', name ? "none is of class ${name}" : 'there are none',
                'Draw an annotation and give it its class, then try again.', 'no_annotation')
        }
        found
    }

    /** The classes of the annotations that can be treated. */
    static List<String> classes(PathObjectHierarchy hierarchy) {
        hierarchy.annotationObjects.toList().findAll { PathObject one -> treatable(one) && one.pathClass != null }
            *.pathClass*.toString().unique().sort()
    }

    static boolean treatable(PathObject object) {
        object.annotation && object.hasROI() && object.ROI.isArea() && !named(object, IGNORE)
    }

    /** Annotations as GeoJSON, without the area of those of class Ignore*. */
    static Map<String, Object> collection(PathObjectHierarchy hierarchy, Collection<PathObject> annotations) {
        List<Geometry> ignored = hierarchy.annotationObjects.toList()
            .findAll { PathObject one -> one.hasROI() && one.ROI.isArea() && named(one, IGNORE) }*.ROI*.geometry
        List<Map> features = []
        annotations.each { PathObject annotation ->
            Geometry area = annotation.ROI.geometry
            ignored.each { Geometry hole -> area = area.difference(hole) }
            if (area.area > 0) {
                features << [type: 'Feature', id: annotation.ID.toString(), geometry: json(area), properties: [:]]
            }
        }
        if (features.empty) {
            throw new PathosamException('annotations', 'nothing of them is left outside those of class Ignore*',
                'Choose other annotations.', 'no_annotation')
        }
        [type: 'FeatureCollection', features: features]
    }

    /** The rectangle [x0, y0, x1, y1] around annotations. */
    static List<Double> bounds(Collection<PathObject> annotations) {
        [annotations*.ROI*.boundsX.min(), annotations*.ROI*.boundsY.min(),
            annotations.collect { PathObject one -> one.ROI.boundsX + one.ROI.boundsWidth }.max(),
            annotations.collect { PathObject one -> one.ROI.boundsY + one.ROI.boundsHeight }.max()]
    }

    /** A geometry's polygons as GeoJSON. */
    static Map<String, Object> json(Geometry geometry) {
        List<List> polygons = []
        for (int i = 0; i < geometry.numGeometries; i++) {
            Geometry part = geometry.getGeometryN(i)
            if (part instanceof Polygon && part.area > 0) {
                polygons << [ring(part.exteriorRing)] +
                    (0..<part.numInteriorRing).collect { int at -> ring(part.getInteriorRingN(at)) }
            }
        }
        polygons.size() == 1 ? [type: 'Polygon', coordinates: polygons[0]] :
            [type: 'MultiPolygon', coordinates: polygons]
    }

    /** GeoJSON's polygon or polygons as a geometry. */
    static Geometry shape(Map json) {
        List<List> polygons = json.type == 'Polygon' ? [json.coordinates] : json.coordinates
        List<Polygon> shapes = polygons.collect { List rings ->
            List<LinearRing> lines = rings.collect { List points ->
                SHAPES.createLinearRing(points.collect { List xy ->
                    new Coordinate(xy[0] as double, xy[1] as double)
                } as Coordinate[])
            }
            SHAPES.createPolygon(lines[0], lines.drop(1) as LinearRing[])
        }
        shapes.size() == 1 ? shapes[0] : SHAPES.createMultiPolygon(shapes as Polygon[])
    }

    private static List ring(LinearRing line) {
        line.coordinates.collect { Coordinate one -> [one.x, one.y] }
    }

    private static boolean named(PathObject object, String name) {
        String text = object.pathClass
        text != null && (text == name || text.startsWith(name + ':'))
    }

}
