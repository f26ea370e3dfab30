// A wide table or figure fades out at the side where there is more of it.
"use strict";
{
  const boxes = document.querySelectorAll(".scroll");
  const look = box => box.classList.toggle("more", box.scrollWidth - box.clientWidth - box.scrollLeft > 4);
  for (const box of boxes) box.addEventListener("scroll", () => look(box), {passive: true});
  addEventListener("resize", () => boxes.forEach(look));
  addEventListener("load", () => boxes.forEach(look));
}
