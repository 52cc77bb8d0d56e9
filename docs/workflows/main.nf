// Slides to heatmaps, a task a slide:
//     nextflow run main.nf --slides 'slides/*.svs' --model breast-idc
params.slides = "slides/*.svs"
params.model = "breast-idc"
params.out = "heatmaps"

process heatmap {
    tag "${slide.baseName}"
    cpus 2
    publishDir params.out, mode: "copy"

    input:
    path slide

    output:
    path "${slide.baseName}"

    script:
    """
    specslide heatmap '${slide}' --model '${params.model}' --readers ${task.cpus} --out .
    """
}

workflow {
    heatmap(Channel.fromPath(params.slides))
}
