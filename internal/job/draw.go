package job

import (
	"fmt"
	"html/template"
	"strings"

	"drover/internal/job/wire"
)

// maxCells is how many hosts a grid shows.
const maxCells = 12_000

// grid draws each host of a job as a cell: its shape tells the verdict as well as its color.
func grid(id string, vs []Verdict) template.HTML {
	const cell, across = 13, 80
	n := min(len(vs), maxCells)
	if n == 0 {
		return ""
	}
	rows := (n + across - 1) / across
	var b strings.Builder
	fmt.Fprintf(&b, `<svg class="grid" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" role="img" aria-label="The verdict of each host">`, min(n, across)*cell, rows*cell)
	for i, v := range vs[:n] {
		x, y := i%across*cell, i/across*cell
		shape := fmt.Sprintf(`<rect x="%d" y="%d" width="10" height="10"/>`, x+1, y+1)
		class := "wait"
		switch v.State {
		case wire.Answered:
			class = "good"
		case wire.Failed, wire.Refused, wire.TimedOut, wire.Silent, wire.Stopped:
			class = "bad"
			shape = fmt.Sprintf(`<path d="M%d %dl5 -10l5 10z"/>`, x+1, y+11)
		case wire.Running:
			class = "busy"
			shape = fmt.Sprintf(`<circle cx="%d" cy="%d" r="5"/>`, x+6, y+6)
		case wire.Offline:
			class = "off"
			shape = fmt.Sprintf(`<path d="M%d %dl10 10m0 -10l-10 10"/>`, x+1, y+1)
		}
		host := template.HTMLEscapeString(v.Host)
		fmt.Fprintf(&b, `<a class="%s" href="/jobs/%s?host=%s#host"><title>%s: %s</title>%s</a>`, class, id, template.URLQueryEscaper(v.Host), host, v.State, shape)
	}
	b.WriteString("</svg>")
	return template.HTML(b.String()) //nolint:gosec // escaped above
}
