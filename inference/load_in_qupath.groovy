// Loads heatmaps of specslide into the images of the project that is open in QuPath: Automate > Script editor, Run.
// Each image gets the objects of the file of its name that lies beside this script. Run again, it replaces them.
// For research use only. Not for diagnostic use.
import qupath.lib.io.PathIO

def folder = new File(FOLDER)
def files = folder.listFiles().findAll { it.name.endsWith('.geojson') }
for (entry in getProject().getImageList()) {
    def name = entry.getImageName()
    // NAME.geojson holds the tiles of the image NAME or NAME.svs, NAME.regions.geojson its regions
    def found = files.findAll { file ->
        def slide = file.name - '.geojson' - '.regions'
        name == slide || name.startsWith(slide + '.') || name.startsWith(slide + ' - ')
    }
    if (found.isEmpty()) {
        println "${name}: no heatmap"
        continue
    }
    def imageData = entry.readImageData()
    def hierarchy = imageData.getHierarchy()
    def objects = found.collectMany { PathIO.readObjects(it) }
    def ids = objects.collect { it.getID() } as Set
    hierarchy.removeObjects(hierarchy.getAllObjects(false).findAll { ids.contains(it.getID()) }, true)
    hierarchy.addObjects(objects)
    entry.saveImageData(imageData)
    imageData.getServer().close()
    println "${name}: ${objects.size()} objects of ${found.collect { it.name }.join(', ')}"
}
