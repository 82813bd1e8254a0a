package pathosam

import qupath.lib.objects.PathObject

/**
 * Tells the server which nuclei of recorded runs were taken out of the open image again.
 *
 * Only QuPath knows it, and whoever compares the image with its runs would take them for deleted by
 * a person. Where no server answers, none is started for it.
 */
class Withdrawn {

    /**
     * @param gone detections that are no longer in the hierarchy
     * @param undone true: their run was taken back; false: a later one replaced them
     */
    static void note(Context context, Collection<PathObject> gone, boolean undone) {
        Map<String, List<PathObject>> byRun = gone.groupBy { PathObject one -> Nuclei.run(one) }
            .findAll { String run, List<PathObject> own -> Nuclei.recorded(run) }
        PathosamClient client = byRun.isEmpty() || context.entry == null ? null : context.runningClient
        if (client != null) {
            byRun.each { String run, List<PathObject> own ->
                client.withdrawn(run, context.projectPath, context.entry.ID, own*.ID*.toString(), undone)
            }
        }
    }

}
