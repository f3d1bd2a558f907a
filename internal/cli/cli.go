package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
	"text/tabwriter"

	"drover/internal/fault"
	"drover/internal/web"

	"go.yaml.in/yaml/v3"
)

// Env is what a verb runs in. Every verb is a kong struct with Run(*cli.Env) error.
type Env struct {
	Ctx      context.Context
	In       io.Reader
	Out      io.Writer // the result, and nothing else
	Err      io.Writer // progress and remarks
	Format   string    // table, json or yaml
	Terminal bool      // Err is a terminal: progress may be drawn
	Client   *web.Client
	Version  string
}

// Show prints v as JSON or YAML when that is asked for; else it calls table, which
// prints for people.
func (e *Env) Show(v any, table func(w io.Writer)) error {
	switch e.Format {
	case "json":
		enc := json.NewEncoder(e.Out)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	case "yaml":
		// By way of JSON, so that both forms have the same names.
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		var plain any
		if err := yaml.Unmarshal(b, &plain); err != nil {
			return err
		}
		enc := yaml.NewEncoder(e.Out)
		enc.SetIndent(2)
		defer enc.Close()
		return enc.Encode(plain)
	case "", "table":
		table(e.Out)
		return nil
	}
	return fault.Invalid("format", "%q is no output form", e.Format).Fix("use -o table, json or yaml")
}

// Table prints rows under a head, columns by tab width.
func Table(w io.Writer, head string, rows func(row func(cells ...any))) {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, strings.Join(strings.Split(head, " "), "\t"))
	rows(func(cells ...any) {
		s := make([]string, len(cells))
		for i, c := range cells {
			// A cell is one line; what came from outside may hold control characters.
			s[i] = strings.Map(func(r rune) rune {
				if r < ' ' || r == 0x7f {
					return ' '
				}
				return r
			}, fmt.Sprint(c))
		}
		fmt.Fprintln(tw, strings.Join(s, "\t"))
	})
	_ = tw.Flush() // what goes to a terminal that has left is nobody's loss
}

// Say prints a remark for a person.
func (e *Env) Say(format string, args ...any) { fmt.Fprintf(e.Err, format+"\n", args...) }

var rePlain = regexp.MustCompile(`^[A-Za-z0-9_./:@%+=,-]+$`)

// Quote makes a word of a shell's command line.
func Quote(s string) string {
	if rePlain.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
