package files

import (
	"fmt"
	"strings"

	"drover/internal/agent/module"
)

const (
	context3  = 3
	maxSearch = 1 << 20 // steps that a diff may look for the shortest way
)

// hunkOp is one line of a diff: of both (' '), of the old ('-') or of the new ('+').
type hunkOp struct {
	kind byte
	line string
	a, b int // where it is, or would be, in the old and the new
}

// splitLines splits a text into lines that keep their ends.
func splitLines(s string) []string {
	var out []string
	for s != "" {
		i := strings.IndexByte(s, '\n')
		if i < 0 {
			return append(out, s)
		}
		out = append(out, s[:i+1])
		s = s[i+1:]
	}
	return out
}

// unified is the difference of two texts in the form of diff -u, "" when there is none. The names
// may be empty, as in what Salt's file.replace shows.
func unified(oldName, newName, oldText, newText string) string {
	if oldText == newText {
		return ""
	}
	ops := compare(splitLines(module.Valid(oldText)), splitLines(module.Valid(newText)))
	var b strings.Builder
	fmt.Fprintf(&b, "--- %s\n+++ %s\n", oldName, newName)
	for i := 0; i < len(ops); {
		if ops[i].kind == ' ' {
			i++
			continue
		}
		start := max(0, i-context3)
		end := i // one behind the last line of the hunk
		for j := i; j < len(ops) && j-end <= 2*context3; j++ {
			if ops[j].kind != ' ' {
				end = j + 1
			}
		}
		i = end
		hunk := ops[start:min(len(ops), end+context3)]
		na, nb := 0, 0
		for _, o := range hunk {
			if o.kind != '+' {
				na++
			}
			if o.kind != '-' {
				nb++
			}
		}
		fmt.Fprintf(&b, "@@ -%s +%s @@\n", span(hunk[0].a, na), span(hunk[0].b, nb))
		for _, o := range hunk {
			b.WriteByte(o.kind)
			b.WriteString(o.line)
			if !strings.HasSuffix(o.line, "\n") {
				b.WriteString("\n\\ No newline at end of file\n")
			}
		}
	}
	return b.String()
}

func span(start, n int) string {
	switch n {
	case 0:
		return fmt.Sprintf("%d,0", start)
	case 1:
		return fmt.Sprint(start + 1)
	}
	return fmt.Sprintf("%d,%d", start+1, n)
}

// compare finds a short way from a to b: Myers' greedy search between what both begin and end
// with. Texts that have next to nothing in common are told apart whole.
func compare(a, b []string) []hunkOp {
	var ops []hunkOp
	pre := 0
	for pre < len(a) && pre < len(b) && a[pre] == b[pre] {
		ops = append(ops, hunkOp{' ', a[pre], pre, pre})
		pre++
	}
	post := 0
	for post < len(a)-pre && post < len(b)-pre && a[len(a)-1-post] == b[len(b)-1-post] {
		post++
	}
	ops = append(ops, middle(a[pre:len(a)-post], b[pre:len(b)-post], pre)...)
	for i := range post {
		x, y := len(a)-post+i, len(b)-post+i
		ops = append(ops, hunkOp{' ', a[x], x, y})
	}
	return ops
}

func middle(a, b []string, off int) []hunkOp {
	n, m := len(a), len(b)
	whole := func() []hunkOp {
		var ops []hunkOp
		for i, l := range a {
			ops = append(ops, hunkOp{'-', l, off + i, off})
		}
		for i, l := range b {
			ops = append(ops, hunkOp{'+', l, off + n, off + i})
		}
		return ops
	}
	if n == 0 || m == 0 {
		return whole()
	}
	limit := n + m
	v := make([]int, 2*limit+2)
	var trace [][]int // of each step: v from -d to d
	steps := 0
	found := -1
	for d := 0; d <= limit && found < 0; d++ {
		if steps += d + 1; steps > maxSearch {
			return whole()
		}
		for k := -d; k <= d; k += 2 {
			var x int
			if k == -d || (k != d && v[limit+k-1] < v[limit+k+1]) {
				x = v[limit+k+1]
			} else {
				x = v[limit+k-1] + 1
			}
			y := x - k
			for x < n && y < m && a[x] == b[y] {
				x, y = x+1, y+1
			}
			v[limit+k] = x
			if x >= n && y >= m {
				found = d
			}
		}
		trace = append(trace, append([]int(nil), v[limit-d:limit+d+1]...))
	}
	var back []hunkOp
	x, y := n, m
	for d := found; d > 0; d-- {
		prev := trace[d-1] // from -(d-1) to d-1
		at := func(k int) int {
			if i := k + d - 1; i >= 0 && i < len(prev) {
				return prev[i]
			}
			return -1
		}
		k := x - y
		down := k == -d || (k != d && at(k-1) < at(k+1))
		pk := k - 1
		if down {
			pk = k + 1
		}
		px := at(pk)
		sx := px + 1 // where the step's straight part began
		if down {
			sx = px
		}
		for x > sx {
			x, y = x-1, y-1
			back = append(back, hunkOp{' ', a[x], off + x, off + y})
		}
		if down {
			y--
			back = append(back, hunkOp{'+', b[y], off + x, off + y})
		} else {
			x--
			back = append(back, hunkOp{'-', a[x], off + x, off + y})
		}
	}
	for x > 0 && y > 0 {
		x, y = x-1, y-1
		back = append(back, hunkOp{' ', a[x], off + x, off + y})
	}
	for i, j := 0, len(back)-1; i < j; i, j = i+1, j-1 {
		back[i], back[j] = back[j], back[i]
	}
	return back
}
