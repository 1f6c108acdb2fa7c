// The search reads a leading "-" as "without this word", and "x:" as the name of a field. Here words
// begin so that are meant as they are: "--epochs" is searched for as "epochs", "hf://" as "hf".
document.addEventListener("input", (event) => {
  const field = event.target;
  if (!field.matches("[data-md-component=search-query]")) return;
  const words = field.value.replace(/:/g, " ").replace(/(^|\s)[-/]+/g, "$1");
  if (words !== field.value) field.value = words;
}, true);
