const slider = document.getElementById("opacity"), heat = document.getElementById("heat");
slider.addEventListener("input", () => {
  heat.style.opacity = slider.value / 100;
  document.getElementById("shown").textContent = slider.value + "%";
});
for (const box of document.querySelectorAll("[data-layer]")) box.addEventListener("change", () => {
  document.getElementById(box.dataset.layer).style.display = box.checked ? "" : "none";
});
