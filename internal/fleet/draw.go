package fleet

import (
	"fmt"
	"html/template"
	"strings"
)

// bar draws parts of a whole as one bar: each with its own pattern, so that color alone tells
// nothing, and its number beside it.
func bar(title string, parts []Count) template.HTML {
	const width, height = 520, 18
	var total int64
	for _, p := range parts {
		total += p.Hosts
	}
	if total == 0 {
		return ""
	}
	var b strings.Builder
	rows := (len(parts) + 1) / 2
	fmt.Fprintf(&b, `<svg class="bar" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" role="img" aria-label="%s">`, width, height+8+rows*18, template.HTMLEscapeString(title))
	x := 0.0
	for i, p := range parts {
		w := float64(p.Hosts) / float64(total) * width
		name := template.HTMLEscapeString(p.Value)
		if name == "" {
			name = "unknown"
		}
		fmt.Fprintf(&b, `<rect class="p%d" x="%.1f" y="0" width="%.1f" height="%d"><title>%s: %d</title></rect>`, i%6, x, max(w, 1), height, name, p.Hosts)
		x += w
		kx, ky := i%2*width/2, height+8+i/2*18
		fmt.Fprintf(&b, `<rect class="p%d" x="%d" y="%d" width="10" height="10"/><text x="%d" y="%d">%s</text><text class="n" x="%d" y="%d" text-anchor="end">%d</text>`, i%6, kx, ky+2, kx+16, ky+11, cut(name, 30), kx+width/2-16, ky+11, p.Hosts)
	}
	b.WriteString("</svg>")
	return template.HTML(b.String()) //nolint:gosec // escaped above
}

// cut shortens a text that is escaped already, without breaking an entity.
func cut(s string, n int) string {
	if len(s) <= n || strings.Contains(s, "&") {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
