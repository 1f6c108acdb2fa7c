"""The style sheet of the page."""

import dataclasses

_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Liberation Sans",Arial,
 sans-serif}
main{max-width:66rem;margin:0 auto;padding:clamp(1.25rem,4vw,3.5rem) clamp(1rem,4vw,2.5rem)}
h1{font-size:clamp(1.5rem,4vw,2rem);line-height:1.2;letter-spacing:-.015em;margin:0 0 1.5rem;
 overflow-wrap:anywhere;text-wrap:balance}
h2{font-size:1.2rem;line-height:1.3;margin:0 0 .6rem}
h3{font-size:1rem;margin:1.75rem 0 .5rem}
section{margin-top:3rem}
p{margin:0 0 1rem;max-width:44rem;color:var(--muted)}
small,.note{font-size:.8125rem;color:var(--muted)}
.wrong{color:var(--wrong)}
.tiles{display:flex;flex-wrap:wrap;gap:1px;margin:0 0 1.25rem;background:var(--line);
 border:1px solid var(--line);border-radius:.5rem;overflow:hidden}
.tiles div{flex:1 1 10rem;background:var(--surface);padding:1rem 1.1rem}
dt{font-size:.8125rem;color:var(--muted)}
dd{margin:0;font-size:1.75rem;line-height:1.25;font-weight:600;letter-spacing:-.02em;
 font-variant-numeric:tabular-nums}
dd small{font-size:1rem;font-weight:400;letter-spacing:0}
dd.note{font-size:.8125rem;font-weight:400;letter-spacing:0;line-height:1.4;margin-top:.2rem}
picture{display:block}
img{display:block;max-width:100%;height:auto}
.curves,.scroll{background:var(--surface);border:1px solid var(--line);border-radius:.5rem;
 padding:.75rem}
.curves{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,18rem),1fr));gap:.5rem}
.scroll{overflow-x:auto}
.scroll img{min-width:min(40rem,.65*var(--natural));margin:0 auto}
table{width:100%;border-collapse:separate;border-spacing:0;background:var(--surface);
 font-size:.9375rem;border:1px solid var(--line);border-radius:.5rem}
th,td{padding:.4rem .75rem;text-align:left;vertical-align:baseline;overflow-wrap:anywhere;
 border-bottom:1px solid var(--line)}
tbody tr:last-child td{border-bottom:0}
th{font-size:.8125rem;font-weight:400;color:var(--muted);overflow-wrap:normal}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.pairs,.classes,.skipped{table-layout:fixed}
.classes .number{width:6.5rem}
.classes .number:nth-last-child(2),.pairs .number:nth-last-child(2){width:10rem}
.pairs .number{width:8.5rem}
.settings td:first-child{width:14rem;color:var(--muted)}
.bar{display:inline-block;width:100%;background:linear-gradient(var(--accent),var(--accent))
 left center/calc((100% - 3.6rem)*var(--part)) .4rem no-repeat}
details{margin-top:.75rem}
summary{cursor:pointer;padding:.4rem 0;color:var(--accent)}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));
 gap:1.5rem 1.1rem}
figure{margin:0;min-width:0;break-inside:avoid}
.frame{aspect-ratio:1;display:grid;place-items:center;background:var(--surface);
 border:1px solid var(--line);border-radius:.375rem;overflow:hidden}
.frame img{width:100%;height:100%;min-height:0;object-fit:contain}
figcaption{display:grid;font-size:.875rem;line-height:1.4;margin-top:.45rem;
 overflow-wrap:anywhere}
figcaption b,figcaption span{display:-webkit-box;-webkit-box-orient:vertical;
 -webkit-line-clamp:3;overflow:hidden}
.gallery+p{margin-top:1.5rem}
@media (max-width:40rem){
 th,td{padding:.35rem .45rem}
 table{font-size:.875rem}
 th{font-size:.75rem}
 th.number,td.number{padding-left:.1rem}
 .classes .number,.classes .number:nth-last-child(2){width:3.7rem}
 .pairs .number,.pairs .number:nth-last-child(2){width:4.2rem;white-space:normal}
 .bar{background:none}
 .settings td:first-child{width:9rem}
 .gallery{grid-template-columns:repeat(auto-fill,minmax(8.5rem,1fr))}
}
@media print{
 main{max-width:none;padding:0}
 body{background:none;font-size:10pt}
 section{margin-top:1.5rem}
 h2,h3{break-after:avoid}
 .tiles div{flex-basis:0}
 .curves{grid-template-columns:repeat(3,1fr)}
 tr,picture,.tiles div{break-inside:avoid}
 .scroll{overflow:visible}
 .scroll img{min-width:0}
 .bar{print-color-adjust:exact;-webkit-print-color-adjust:exact}
 .gallery{grid-template-columns:repeat(5,1fr)}
 summary{display:none}
 details::details-content{content-visibility:visible;block-size:auto}
}
"""


def sheet(light, dark):
    """The rules, in the colours of two `style.Theme`s."""
    return (
        f":root{{color-scheme:light dark;{_colours(light)}}}\n"
        f"@media (prefers-color-scheme:dark){{:root{{{_colours(dark)}}}}}{_RULES}"
    )


def _colours(theme):
    return "".join(f"--{name}:{value};" for name, value in dataclasses.asdict(theme).items())
