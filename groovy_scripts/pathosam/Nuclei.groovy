package pathosam

import groovy.transform.CompileDynamic
import groovy.transform.CompileStatic
import org.locationtech.jts.geom.Geometry
import org.locationtech.jts.index.strtree.STRtree
import qupath.lib.geom.Point2
import qupath.lib.measurements.MeasurementList
import qupath.lib.measurements.MeasurementListFactory
import qupath.lib.objects.PathObject
import qupath.lib.objects.PathObjects
import qupath.lib.objects.classes.PathClass
import qupath.lib.regions.ImagePlane
import qupath.lib.roi.GeometryTools
import qupath.lib.roi.ROIs
import qupath.lib.roi.interfaces.ROI

/**
 * The server's features as detections, and which detections are as they were written.
 *
 * A detection names its run in its metadata, and carries a fingerprint (number of vertices, area,
 * mean of the vertices, class) with which a later run can tell whether a person has edited it. QuPath
 * hides metadata that begin with an underscore from its tables.
 */
@CompileStatic
class Nuclei {

    static final String RUN = 'PathoSAM run'
    static final String WRITTEN = '_PathoSAM written'

    /** Marks of nuclei that a person asked for one by one; no later run replaces those. */
    static final String PROMPT = 'prompt'

    /** Pixels. QuPath 0.6 and later round vertices to 0.01 px when they load some shapes. */
    static final double TOLERANCE = 0.02

    /** What that rounding can do to the mean of the vertices. A dragged vertex does more. */
    static final double ROUNDED = 0.01

    /** A new nucleus is dropped where it shares more than this of the smaller one's area. */
    static final double OVERLAP = 0.5

    private static final int NUMBERS = 4
    private static final int TRIANGLE = 4
    private static final String SEPARATOR = ' '

    /** A feature as a detection. */
    static PathObject detection(Map feature, String run) {
        // By get: for Groovy 5 (QuPath 0.7) the property of this name tells about the map itself.
        Map properties = (feature.get('properties') ?: [:]) as Map
        PathClass pathClass = pathClass(properties.classification as Map)
        Map measured = (properties.measurements ?: [:]) as Map
        MeasurementList measurements = MeasurementListFactory.createMeasurementList(measured.size(),
            MeasurementList.MeasurementListType.DOUBLE)
        for (Map.Entry entry : (measured as Map<Object, Object>).entrySet()) {
            if (entry.value != null) {
                measurements.put(entry.key as String, entry.value as double)
            }
        }
        measurements.close()
        PathObject object = PathObjects.createDetectionObject(roi(feature.geometry as Map), pathClass, measurements)
        if (properties.probability != null) {
            object.setPathClass(pathClass, properties.probability as double)
        }
        if (feature.id) {
            object.ID = UUID.fromString(feature.id as String)
        }
        store(object, RUN, run)
        store(object, WRITTEN, fingerprint(object))
        object
    }

    /** QuPath's class of a classification; a class that QuPath knows keeps its colour. */
    static PathClass pathClass(Map classification) {
        String name = classification == null ? null :
            (classification.name ?: (classification.names as List)?.join(': ')) as String
        if (!name) {
            return null
        }
        List<Number> color = classification.color as List<Number>
        Integer packed = color == null ? null :
            (Integer) (0xff << 24 | color[0].intValue() << 16 | color[1].intValue() << 8 | color[2].intValue())
        PathClass.fromString(name, packed)
    }

    /** A GeoJSON polygon as a ROI. */
    static ROI roi(Map geometry) {
        List rings = geometry.coordinates as List
        if (geometry.type != 'Polygon' || rings.size() != 1) {
            return GeometryTools.geometryToROI(Regions.shape(geometry), ImagePlane.defaultPlane)
        }
        List<List<Number>> ring = rings[0] as List<List<Number>>
        int count = ring.size() - 1
        double[] x = new double[count]
        double[] y = new double[count]
        for (int i = 0; i < count; i++) {
            x[i] = ring[i][0].doubleValue()
            y[i] = ring[i][1].doubleValue()
        }
        ROIs.createPolygonROI(x, y, ImagePlane.defaultPlane)
    }

    /** What a detection looks like, in a few words. */
    static String fingerprint(PathObject object) {
        ROI roi = object.ROI
        double x = 0
        double y = 0
        for (Point2 vertex : roi.allPoints) {
            x += vertex.x
            y += vertex.y
        }
        int count = roi.numPoints
        String.format(Locale.ROOT, '%d %.3f %.4f %.4f %s', count, roi.getArea(), x / count, y / count,
            object.pathClass ?: '')
    }

    /** The run that made an object, or null. */
    static String run(PathObject object) {
        object.detection ? object.metadata.get(RUN) : null
    }

    /** Whether a mark names a run, which may be recorded; the others are those of single nuclei. */
    static boolean recorded(String mark) {
        mark != null && Character.isDigit(mark.charAt(0))
    }

    /** Whether a detection carries the fingerprint that a run of these scripts gives. */
    static boolean fingerprinted(PathObject object) {
        object.metadata.containsKey(WRITTEN)
    }

    /** Whether a marked detection may have been edited, as far as its own state tells. */
    static boolean plain(PathObject object) {
        object.detection && !object.cell && !object.tile && !object.locked && !object.hasChildObjects() &&
            object.name == null && object.color == null
    }

    /** Whether a detection is as its run wrote it, by its fingerprint. */
    static boolean untouched(PathObject object) {
        object.metadata.get(RUN) != PROMPT && plain(object) && asWritten(object)
    }

    /** Whether a detection's outline and class are those of its fingerprint. */
    static boolean asWritten(PathObject object) {
        if (!fingerprinted(object)) {
            return false
        }
        List<String> then = object.metadata.get(WRITTEN).split(SEPARATOR, NUMBERS + 1) as List<String>
        List<String> now = fingerprint(object).split(SEPARATOR, NUMBERS + 1) as List<String>
        if (then.size() != now.size() || then[0] != now[0] || then[NUMBERS] != now[NUMBERS]) {
            return false
        }
        double length = object.ROI.length
        // QuPath 0.7 gives no length for outlines of some shapes.
        double around = Double.isNaN(length) ? 2 * (object.ROI.boundsWidth + object.ROI.boundsHeight) : length
        double tolerance = TOLERANCE * Math.max(around, 1d)
        near(then[1], now[1], tolerance) && near(then[2], now[2], ROUNDED) && near(then[3], now[3], ROUNDED)
    }

    /** Those of new detections that lie on none of the kept by more than OVERLAP of the smaller. */
    static List<PathObject> clearOf(List<PathObject> fresh, Collection<PathObject> kept) {
        if (kept.empty || fresh.empty) {
            return fresh
        }
        STRtree tree = new STRtree()
        for (PathObject object : kept) {
            Geometry shape = valid(object.ROI.geometry)
            tree.insert(shape.envelopeInternal, shape)
        }
        fresh.findAll { PathObject object ->
            Geometry shape = valid(object.ROI.geometry)
            !tree.query(shape.envelopeInternal).any { Object other ->
                shape.intersection((Geometry) other).area > OVERLAP * Math.min(shape.area, ((Geometry) other).area)
            }
        }
    }

    /** Of the annotations that hold a detection's centroid the smallest, else what is given. */
    static PathObject parent(PathObject object, List<PathObject> bySize, PathObject otherwise) {
        double x = object.ROI.centroidX
        double y = object.ROI.centroidY
        bySize.find { PathObject one -> one.ROI.contains(x, y) } ?: otherwise
    }

    /** Whether a GeoJSON geometry is a polygon at all. */
    static boolean drawn(Map geometry) {
        List rings = geometry?.coordinates as List
        rings && (geometry.type != 'Polygon' || (rings[0] as List).size() >= TRIANGLE)
    }

    /** Until QuPath 0.5 the metadata of a detection are shown read-only, and stored by another method. */
    @CompileDynamic
    private static void store(PathObject object, String key, String value) {
        try {
            object.metadata.put(key, value)
        } catch (UnsupportedOperationException ignored) {
            object.storeMetadataValue(key, value)
        }
    }

    private static boolean near(String one, String other, double tolerance) {
        Math.abs(Double.parseDouble(one) - Double.parseDouble(other)) <= tolerance
    }

    /** A person can drag a vertex until an outline crosses itself. */
    private static Geometry valid(Geometry shape) {
        shape.valid ? shape : shape.buffer(0)
    }

}
