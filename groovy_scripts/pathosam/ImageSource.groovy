package pathosam

import qupath.lib.images.servers.ImageServer
import qupath.lib.images.servers.ImageServerBuilder
import qupath.lib.images.servers.PixelCalibration
import qupath.lib.io.GsonTools
import qupath.lib.regions.RegionRequest

import javax.imageio.ImageIO
import java.awt.image.BufferedImage

/**
 * How the server gets at an image's pixels: from the file itself where it can read that, else
 * the region's pixels are sent.
 *
 * QuPath may show a file through wrappers. A rotation by quarter turns is passed on; any other
 * wrapper means that the pixels are sent as QuPath shows them.
 */
class ImageSource {

    /** Micrometres around a region that are sent with it, so that nuclei at its border are whole. */
    static final double MARGIN = 40

    private static final Map<String, Integer> TURNS = [ROTATE_NONE: 0, ROTATE_90: 90, ROTATE_180: 180, ROTATE_270: 270]
    private static final long MOST_PIXELS = 90_000_000L
    private static final Set<String> SEND_INSTEAD = ['outside_roots', 'image'] as Set

    final ImageServer server
    final Settings settings

    ImageSource(ImageServer server, Settings settings) {
        this.server = server
        this.settings = settings
        if (!server.RGB) {
            throw new PathosamException(server.metadata.name, 'it is not an RGB brightfield image',
                'Nuclei are found in H&E and other brightfield images of 8 bits per channel.', 'image')
        }
    }

    /** The file behind a server where it is one local file, else null. */
    static File file(ImageServer server) {
        URI uri = server.URIs.size() == 1 ? server.URIs.first() : null
        uri?.scheme == 'file' ? new File(uri.path) : null
    }

    /** Micrometres per pixel: of the settings, of QuPath, or an error with the remedy. */
    List<Double> getMpp() {
        if (settings.mpp != null) {
            return [settings.mpp, settings.mpp]
        }
        PixelCalibration calibration = server.pixelCalibration
        if (!calibration.hasPixelSizeMicrons()) {
            throw new PathosamException(server.metadata.name, 'its pixel size is not known',
                'Set it in QuPath (Image tab, double-click on Pixel width), or in Extensions > PathoSAM > Settings.',
                'pixel_size')
        }
        [calibration.pixelWidthMicrons, calibration.pixelHeightMicrons]
    }

    /**
     * The request that has the server open the file, or null where QuPath shows it through
     * something that changes pixels.
     */
    Map<String, Object> request() {
        Object builder = server.builder
        Map json = builder == null ? null :
            Json.parse(GsonTools.instance.toJson(builder, ImageServerBuilder.ServerBuilder)) as Map
        int turn = 0
        if (json?.builderType == 'rotated') {
            turn = TURNS.getOrDefault(json.rotation, 0)
            json = json.builder as Map
        }
        if (json?.builderType != 'uri' || file(server) == null) {
            return null
        }
        List<String> words = (json.args ?: [])*.toString()
        if (words.any { String one -> one.startsWith('--rotate') || one.startsWith('--order') }) {
            return null
        }
        [path: file(server).absolutePath, series: series(words), rotation: turn, mpp: mpp]
    }

    /** Have the server open the file: its id, or null where the pixels have to be sent. */
    String openFile(PathosamClient client) {
        Map<String, Object> asked = request()
        try {
            return asked == null ? null : client.openImage(asked)
        } catch (PathosamException error) {
            if (error.code in SEND_INSTEAD) {
                return null
            }
            throw error
        }
    }

    /** Send the pixels of a rectangle [x0, y0, x1, y1] and its margin, at the model's resolution. */
    String send(PathosamClient client, List<Double> bounds) {
        double size = (mpp[0] + mpp[1]) / 2
        double margin = MARGIN / size
        int x = Math.max(0, Math.floor(bounds[0] - margin) as int)
        int y = Math.max(0, Math.floor(bounds[1] - margin) as int)
        int width = Math.min(server.width, Math.ceil(bounds[2] + margin) as int) - x
        int height = Math.min(server.height, Math.ceil(bounds[3] + margin) as int) - y
        double wanted = (client.health().model?.mpp ?: size) as double
        double downsample = Math.max(1.0d, wanted / size)
        if (width / downsample * (height / downsample) > MOST_PIXELS) {
            throw new PathosamException(server.metadata.name,
                'the server cannot read its file, and the region is too large to send its pixels',
                'Choose a smaller annotation, or start the server with --root and the folder of the image.',
                'too_large')
        }
        BufferedImage picture = server.readRegion(
            RegionRequest.createInstance(server.path, downsample, x, y, width, height))
        ByteArrayOutputStream bytes = new ByteArrayOutputStream()
        ImageIO.write(opaque(picture), 'png', bytes)
        client.sendPixels([x: x, y: y, width: width, height: height, mpp: mpp[0], mpp_y: mpp[1],
            slide_width: server.width, slide_height: server.height], bytes.toByteArray())
    }

    private static BufferedImage opaque(BufferedImage picture) {
        BufferedImage plain = new BufferedImage(picture.width, picture.height, BufferedImage.TYPE_INT_RGB)
        plain.createGraphics().drawImage(picture, 0, 0, null)
        plain
    }

    private static int series(List<String> words) {
        int at = words.indexOf('--series')
        String joined = words.find { String one -> one.startsWith('--series=') }
        joined != null ? joined.split('=')[1] as int : at >= 0 ? words[at + 1] as int : 0
    }

}
