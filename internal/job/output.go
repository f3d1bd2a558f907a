package job

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"drover/internal/fault"
	"drover/internal/job/wire"

	"go.yaml.in/yaml/v3"
)

// Outputs are the ways in which results are printed, with Salt's names.
func Outputs() []string {
	return []string{"nested", "json", "yaml", "txt", "table", "raw", "highstate", "no_return", "quiet"}
}

// ordered decodes JSON and keeps the order of mappings: results are printed as hosts gave them.
type ordered struct {
	keys []string
	vals map[string]any
}

func decodeOrdered(b []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	return nextValue(d)
}

func nextValue(d *json.Decoder) (any, error) {
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch x := t.(type) {
	case json.Delim:
		if x == '[' {
			l := []any{}
			for d.More() {
				v, err := nextValue(d)
				if err != nil {
					return nil, err
				}
				l = append(l, v)
			}
			_, err := d.Token()
			return l, err
		}
		o := ordered{vals: map[string]any{}}
		for d.More() {
			k, err := d.Token()
			if err != nil {
				return nil, err
			}
			key := fmt.Sprint(k)
			v, err := nextValue(d)
			if err != nil {
				return nil, err
			}
			if _, had := o.vals[key]; !had {
				o.keys = append(o.keys, key)
			}
			o.vals[key] = v
		}
		slices.Sort(o.keys) // as Salt's nested outputter shows them
		_, err := d.Token()
		return o, err
	}
	return t, nil
}

// clean keeps what a host said from steering the terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '\uFFFD'
		}
		return r
	}, s)
}

// Print prints the verdict of a host.
func Print(w io.Writer, out string, v Verdict) error {
	switch out {
	case "quiet", "no_return":
		if out == "no_return" {
			fmt.Fprintf(w, "%s:\n    %s\n", v.Host, explain(v))
		}
		return nil
	case "json":
		b, err := json.MarshalIndent(map[string]any{v.Host: saltReturn(v)}, "", "    ")
		if err == nil {
			fmt.Fprintf(w, "%s\n", b)
		}
		return err
	case "yaml":
		var x any
		if err := json.Unmarshal(saltReturn(v), &x); err != nil {
			return err
		}
		b, err := yaml.Marshal(map[string]any{v.Host: x})
		if err == nil {
			fmt.Fprint(w, string(b))
		}
		return err
	case "raw":
		fmt.Fprintf(w, "{'%s': %s}\n", v.Host, python(decoded(saltReturn(v))))
		return nil
	case "txt":
		for _, l := range strings.Split(strings.TrimRight(textOf(v), "\n"), "\n") {
			fmt.Fprintf(w, "%s: %s\n", v.Host, l)
		}
		return nil
	case "highstate":
		return highstate(w, v)
	case "table":
		return table(w, v)
	case "", "nested":
		fmt.Fprintf(w, "%s:\n", v.Host)
		if v.State != wire.Answered {
			fmt.Fprintf(w, "    %s %s\n", mark(v.State), explain(v))
		}
		if len(v.Return) > 0 {
			nested(w, decoded(v.Return), 4)
		}
		if v.Blob != "" {
			fmt.Fprintf(w, "    (%d bytes in all: see the job's output)\n", v.Size)
		}
		return nil
	}
	return fault.Invalid("output", "%.40q is no way to print results", out).Fix("use one of %s", strings.Join(Outputs(), ", "))
}

// printAll prints what all hosts gave as one document.
func printAll(w io.Writer, out string, all []Verdict) error {
	m := map[string]json.RawMessage{}
	for _, v := range all {
		m[v.Host] = saltReturn(v)
	}
	b, err := json.MarshalIndent(m, "", "    ")
	if err != nil {
		return err
	}
	if out == "yaml" {
		var x any
		if err := yaml.Unmarshal(b, &x); err != nil {
			return err
		}
		if b, err = yaml.Marshal(x); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(w, "%s\n", bytes.TrimRight(b, "\n"))
	return err
}

func decoded(b []byte) any {
	v, err := decodeOrdered(b)
	if err != nil {
		return string(b)
	}
	return v
}

// saltReturn is what Salt's outputters get: the result, or a text that says why there is none.
func saltReturn(v Verdict) json.RawMessage {
	if len(v.Return) > 0 && (v.State == wire.Answered || v.State == wire.Failed) {
		return v.Return
	}
	b, err := json.Marshal(explain(v))
	if err != nil {
		return json.RawMessage("null")
	}
	return b
}

func mark(state string) string {
	switch state {
	case wire.Answered:
		return "✔"
	case wire.Offline, wire.Skipped, wire.Waiting, wire.Running:
		return "○"
	}
	return "✘"
}

// explain says what became of it on a host, in words.
func explain(v Verdict) string {
	s := v.State
	switch v.State {
	case wire.Failed:
		s = fmt.Sprintf("failed, return code %d", v.RC)
	case wire.Offline:
		s = "offline"
		if !v.Since.IsZero() {
			s += " since " + v.Since.Local().Format(time.DateTime)
		}
	case wire.TimedOut:
		s = "timed out"
		if v.Step != "" {
			s += " at " + v.Step
		}
	case wire.Refused:
		s = "refused by the host"
	case wire.Silent:
		s = "connected, and silent"
	case wire.Running:
		s = "still running"
		if v.Step != "" && v.Step != "running" {
			s += " at " + v.Step
		}
	}
	if v.Error != "" {
		s += ": " + clean(v.Error)
	}
	return s
}

func textOf(v Verdict) string {
	if v.State != wire.Answered && len(v.Return) == 0 {
		return explain(v)
	}
	switch x := decoded(v.Return).(type) {
	case string:
		return clean(x)
	case nil:
		return "None"
	default:
		return python(x)
	}
}

// nested prints a value as Salt's nested outputter does.
func nested(w io.Writer, v any, indent int) {
	pad := strings.Repeat(" ", indent)
	switch x := v.(type) {
	case ordered:
		fmt.Fprintf(w, "%s----------\n", pad)
		for _, k := range x.keys {
			fmt.Fprintf(w, "%s%s:\n", pad, clean(k))
			nested(w, x.vals[k], indent+4)
		}
	case []any:
		for _, e := range x {
			switch y := e.(type) {
			case ordered, []any:
				fmt.Fprintf(w, "%s|_\n", pad)
				nested(w, y, indent+2)
			default:
				fmt.Fprintf(w, "%s- %s\n", pad, scalar(y))
			}
		}
	default:
		for _, l := range strings.Split(strings.TrimRight(scalar(x), "\n"), "\n") {
			fmt.Fprintf(w, "%s%s\n", pad, l)
		}
	}
}

func scalar(v any) string {
	switch x := v.(type) {
	case nil:
		return "None"
	case bool:
		if x {
			return "True"
		}
		return "False"
	case string:
		return clean(x)
	case json.Number:
		return x.String()
	case float64:
		if x == math.Trunc(x) {
			return strconv.FormatFloat(x, 'f', -1, 64)
		}
	}
	return fmt.Sprint(v)
}

// python prints a value as Python's repr does.
func python(v any) string {
	switch x := v.(type) {
	case ordered:
		var out []string
		for _, k := range x.keys {
			out = append(out, python(k)+": "+python(x.vals[k]))
		}
		return "{" + strings.Join(out, ", ") + "}"
	case []any:
		var out []string
		for _, e := range x {
			out = append(out, python(e))
		}
		return "[" + strings.Join(out, ", ") + "]"
	case string:
		q := "'"
		if strings.Contains(x, "'") && !strings.Contains(x, `"`) {
			q = `"`
		}
		s := strings.NewReplacer(`\`, `\\`, "\n", `\n`, "\t", `\t`, "\r", `\r`).Replace(x)
		if q == "'" {
			s = strings.ReplaceAll(s, "'", `\'`)
		}
		return q + clean(s) + q
	}
	return scalar(v)
}

// table prints a mapping of mappings, or a list of mappings, as a table.
func table(w io.Writer, v Verdict) error {
	var rows [][]string
	head := []string{}
	add := func(name string, o ordered) {
		for _, k := range o.keys {
			if !slices.Contains(head, k) {
				head = append(head, k)
			}
		}
		row := []string{name}
		for _, k := range head {
			row = append(row, strings.ReplaceAll(scalarOr(o.vals[k]), "\n", " "))
		}
		rows = append(rows, row)
	}
	switch x := decoded(v.Return).(type) {
	case ordered:
		for _, k := range x.keys {
			if o, ok := x.vals[k].(ordered); ok {
				add(k, o)
			} else {
				rows = append(rows, []string{k, scalarOr(x.vals[k])})
			}
		}
	case []any:
		for i, e := range x {
			if o, ok := e.(ordered); ok {
				add(strconv.Itoa(i), o)
			} else {
				rows = append(rows, []string{strconv.Itoa(i), scalarOr(e)})
			}
		}
	default:
		return Print(w, "nested", v)
	}
	fmt.Fprintf(w, "%s:\n", v.Host)
	all := append([][]string{append([]string{""}, head...)}, rows...)
	width := []int{}
	for _, r := range all {
		for i, c := range r {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = min(max(width[i], len([]rune(c))), 60)
		}
	}
	for _, r := range all {
		var b strings.Builder
		for i, c := range r {
			b.WriteString("  " + c + strings.Repeat(" ", max(0, width[i]-len([]rune(c)))))
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
	return nil
}

func scalarOr(v any) string {
	switch v.(type) {
	case ordered, []any:
		return python(v)
	case nil:
		return ""
	}
	return scalar(v)
}

// highstate prints the results of states as Salt's outputter of that name does; anything else is
// printed nested.
func highstate(w io.Writer, v Verdict) error {
	o, ok := decoded(v.Return).(ordered)
	if !ok || len(o.keys) == 0 || !strings.Contains(o.keys[0], "_|-") {
		return Print(w, "nested", v)
	}
	fmt.Fprintf(w, "%s:\n", v.Host)
	num := func(m ordered) float64 {
		n, ok := m.vals["__run_num__"].(json.Number)
		if !ok {
			return math.MaxFloat64
		}
		f, err := n.Float64()
		if err != nil {
			return math.MaxFloat64
		}
		return f
	}
	slices.SortStableFunc(o.keys, func(a, b string) int {
		x, _ := o.vals[a].(ordered)
		y, _ := o.vals[b].(ordered)
		return int(num(x) - num(y))
	})
	fine, failed, changed := 0, 0, 0
	for _, tag := range o.keys {
		m, ok := o.vals[tag].(ordered)
		parts := strings.Split(tag, "_|-")
		if !ok || len(parts) != 4 {
			continue
		}
		changes, _ := m.vals["changes"].(ordered)
		if good, told := m.vals["result"].(bool); told && !good {
			failed++
		} else {
			fine++
		}
		if len(changes.keys) > 0 {
			changed++
		}
		fmt.Fprintf(w, "----------\n          ID: %s\n    Function: %s.%s\n", clean(parts[1]), clean(parts[0]), clean(parts[3]))
		if n := scalarOr(m.vals["name"]); n != parts[1] {
			fmt.Fprintf(w, "        Name: %s\n", n)
		}
		fmt.Fprintf(w, "      Result: %s\n     Comment: %s\n", scalar(m.vals["result"]), strings.ReplaceAll(scalarOr(m.vals["comment"]), "\n", "\n              "))
		if d := scalarOr(m.vals["duration"]); d != "" {
			fmt.Fprintf(w, "     Started: %s\n    Duration: %s ms\n", scalarOr(m.vals["start_time"]), strings.TrimSuffix(d, " ms"))
		}
		fmt.Fprintln(w, "     Changes:")
		if len(changes.keys) > 0 {
			nested(w, changes, 14)
		}
	}
	fmt.Fprintf(w, "\nSummary for %s\n------------\nSucceeded: %d (changed=%d)\nFailed:    %d\n------------\nTotal states run:     %d\n", v.Host, fine, changed, failed, fine+failed)
	return nil
}
