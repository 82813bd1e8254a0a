package pathosam

import qupath.lib.geom.Point2
import qupath.lib.images.servers.ImageServer
import qupath.lib.objects.PathObject
import qupath.lib.objects.PathROIObject

/** Nuclei that a person points at, and outlines that are drawn anew. */
class Prompting {

    private static final String ADD = 'PathoSAM: add nucleus'
    private static final String REFINE = 'PathoSAM: refine nucleus'
    private static final double LARGEST = 100
    private static final double AROUND = 60
    private static final int MOST = 1000

    /** Rectangles whose pixels were sent, by image, so that a second click needs no new ones. */
    private static final Map<ImageServer, List> SENT = Collections.synchronizedMap(new WeakHashMap<>())

    /** Menu: Add nucleus from point/box. */
    static void add(Context context) {
        context.doing(ADD) {
            ImageSource source = new ImageSource(context.image.server, context.settings)
            List<PathObject> chosen = context.hierarchy.selectionModel.selectedObjects.toList()
                .findAll { PathObject one -> one.annotation && one.hasROI() && (one.ROI.point || one.ROI.isArea()) }
            List<Map> prompts = chosen.collectMany { PathObject one -> prompts(one, source) }
            if (prompts.empty) {
                throw new PathosamException('prompt', 'no point and no box is selected',
                    'Click on a nucleus with the points tool, or draw a rectangle around it; select that, try again.',
                    'no_prompt')
            }
            List<Map> features = ask(context, source, prompts, ADD)
            Changes changes = new Changes(Nuclei.PROMPT)
            features.findAll { Map one -> Nuclei.drawn(one.geometry) }.each { Map one ->
                PathObject nucleus = Nuclei.detection(one, Nuclei.PROMPT)
                changes.add(nucleus, Nuclei.parent(nucleus, holders(context, chosen), null))
            }
            spent(chosen, features).each { PathObject one -> changes.remove(one) }
            context.ui.change {
                changes.apply(context.hierarchy)
                context.ui.listClasses(changes.addedObjects*.pathClass.findAll().unique())
            }
            int missing = prompts.size() - changes.addedCount
            context.ui.tell(ADD, "${changes.addedCount} added" +
                (missing ? "; at ${missing} places no nucleus was found (their points and boxes are left)" : ''))
        }
    }

    /** Menu: Refine selected nucleus. */
    static void refine(Context context) {
        context.doing(REFINE) {
            ImageSource source = new ImageSource(context.image.server, context.settings)
            List<PathObject> chosen = context.hierarchy.selectionModel.selectedObjects.toList()
                .findAll { PathObject one -> one.detection && one.hasROI() && one.ROI.isArea() && !one.locked }
            if (chosen.empty) {
                throw new PathosamException('nucleus', 'none is selected that may be changed',
                    'Select one or more detections (locked ones are left alone) and try again.', 'no_nucleus')
            }
            List<Map> prompts = chosen.collect { PathObject one -> [geometry: Regions.json(one.ROI.geometry)] }
            List<Map> features = ask(context, source, prompts, REFINE)
            Changes changes = new Changes(null)
            int refined = 0
            chosen.eachWithIndex { PathObject object, int i ->
                if (Nuclei.drawn(features[i].geometry)) {
                    changes.reshape((PathROIObject) object, Nuclei.roi(features[i].geometry), measured(features[i]))
                    refined++
                }
            }
            context.ui.change { changes.apply(context.hierarchy) }
            context.ui.tell(REFINE, "${refined} of ${chosen.size()} have a new outline; their classes are as they were")
        }
    }

    private static List<Map> ask(Context context, ImageSource source, List<Map> prompts, String title) {
        if (prompts.size() > MOST) {
            throw new PathosamException('prompts', "${prompts.size()} are selected, at most ${MOST} go at once",
                'Select fewer.', 'too_large')
        }
        context.ui.working(title) { Progress progress ->
            PathosamClient client = context.client(progress)
            Map<String, Object> options = context.settings.classNames ? [classes: context.settings.classNames] : [:]
            progress.report('Looking', -1)
            String image = source.openFile(client)
            if (image != null) {
                return client.prompt(image, prompts, options)
            }
            List<Double> bounds = around(prompts, source)
            try {
                return client.prompt(sent(source, client, bounds), prompts, options)
            } catch (PathosamException error) {
                if (error.code != 'not_found') {
                    throw error
                }
                // The server has let go of the pixels, or is another one by now.
                SENT.remove(source.server)
                return client.prompt(sent(source, client, bounds), prompts, options)
            }
        } as List<Map>
    }

    private static String sent(ImageSource source, PathosamClient client, List<Double> bounds) {
        List known = SENT[source.server]
        List<Double> held = known == null ? null : known[0] as List<Double>
        if (held != null && held[0] <= bounds[0] && held[1] <= bounds[1] && held[2] >= bounds[2] &&
                held[3] >= bounds[3]) {
            return known[1]
        }
        String image = source.send(client, bounds)
        SENT[source.server] = [bounds, image]
        image
    }

    private static List<Double> around(List<Map> prompts, ImageSource source) {
        List<List<Double>> corners = prompts.collectMany { Map one ->
            one.points ?: one.box ? [one.box[0..1], one.box[2..3]] : one.geometry.coordinates.flatten().collate(2)
        }
        double reach = AROUND / source.mpp[0]
        [corners*.get(0).min() - reach, corners*.get(1).min() - reach,
            corners*.get(0).max() + reach, corners*.get(1).max() + reach]
    }

    private static List<Map> prompts(PathObject object, ImageSource source) {
        if (object.ROI.point) {
            return object.ROI.allPoints.collect { Point2 one -> [points: [[one.x, one.y]], labels: [1]] }
        }
        double size = Math.max(object.ROI.boundsWidth, object.ROI.boundsHeight) * source.mpp[0]
        if (size > LARGEST) {
            throw new PathosamException('box', "it is ${Math.round(size)} \u00b5m wide, which is no nucleus",
                'Draw a rectangle around one nucleus, select only that and try again.', 'too_large')
        }
        double x = object.ROI.boundsX
        double y = object.ROI.boundsY
        [[box: [x, y, x + object.ROI.boundsWidth, y + object.ROI.boundsHeight]]]
    }

    /** Points and boxes that every one of became a nucleus and that a person gave no name or class. */
    private static List<PathObject> spent(List<PathObject> chosen, List<Map> features) {
        Iterator<Map> answers = features.iterator()
        chosen.findAll { PathObject object ->
            int count = object.ROI.point ? object.ROI.allPoints.size() : 1
            List<Map> own = (1..count).collect { answers.next() }
            own.every { Map one -> Nuclei.drawn(one.geometry) } && object.pathClass == null && object.name == null &&
                !object.locked && !object.hasChildObjects()
        }
    }

    private static List<PathObject> holders(Context context, List<PathObject> except) {
        context.hierarchy.annotationObjects.toList().findAll { PathObject one ->
            one.hasROI() && one.ROI.isArea() && !(one in except)
        }.sort { PathObject one -> one.ROI.getArea() }
    }

    private static Map<String, Double> measured(Map feature) {
        Map<String, Object> given = feature.get('properties')?.measurements ?: [:]
        given.findAll { String name, Object value -> value != null }
            .collectEntries { String name, Object value -> [name, value as double] }
    }

}
