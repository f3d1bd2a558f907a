package app

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// verbs is the reference of the command line, from its own model.
func verbs(t *testing.T) string {
	t.Helper()
	var l line
	p, err := kong.New(&l, kong.Name("drover"))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("# Verbs\n\nEvery verb with its arguments and flags, made from the command line by `go test ./internal/app -run Verbs -update`.\n\nFlags of every verb:\n\n")
	flags := func(fs []*kong.Flag) {
		b.WriteString("| flag | default | |\n|---|---|---|\n")
		for _, f := range fs {
			if f.Hidden {
				continue
			}
			name := "--" + f.Name
			if f.Tag.Negatable != "" {
				name = "--[no-]" + f.Name
			}
			if f.Short != 0 {
				name = fmt.Sprintf("-%c, %s", f.Short, name)
			}
			if !f.IsBool() {
				name += " " + strings.ToUpper(strings.TrimSuffix(f.FormatPlaceHolder(), ",..."))
				name = strings.SplitN(name, "\"", 2)[0]
				name = strings.TrimSpace(strings.SplitN(name, ";", 2)[0])
			}
			def := f.Default
			if len(f.Envs) > 0 {
				def = strings.TrimSpace(def + " $" + f.Envs[0])
			}
			if f.Required {
				def = "required"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", name, cell(def), cell(f.Help))
		}
	}
	flags(p.Model.Flags)
	for _, n := range p.Model.Leaves(true) {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n", n.FullPath(), n.Help)
		for _, a := range n.Positional {
			fmt.Fprintf(&b, "\n- `%s`: %s", a.Summary(), a.Help)
		}
		if len(n.Positional) > 0 {
			b.WriteString("\n")
		}
		if len(n.Flags) > 0 {
			b.WriteString("\n")
			flags(n.Flags)
		}
		if ex := n.Tag.Get("example"); ex != "" {
			fmt.Fprintf(&b, "\nExample:\n\n    %s\n", strings.ReplaceAll(ex, "\n", "\n    "))
		}
	}
	return b.String()
}

func cell(s string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ", "<", "&lt;").Replace(s)
}

// The manual's list of verbs is what the command line has.
func TestVerbsAreInTheManual(t *testing.T) {
	want := verbs(t)
	const file = "../../docs/verbs.md"
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, []byte(want)) {
		t.Error("docs/verbs.md is not what the command line says: run go test ./internal/app -run Verbs -update")
	}
}
