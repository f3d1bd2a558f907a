package wire

import (
	"encoding/json"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

var reKey = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// Words reads the arguments of a command line as Salt's does: KEY=VALUE is by name, the rest by
// position; a value that is a number, a truth or a list or mapping of YAML is taken as that.
func Words(words []string) (args []any, named map[string]any) {
	for _, w := range words {
		if k, v, ok := strings.Cut(w, "="); ok && reKey.MatchString(k) {
			if named == nil {
				named = map[string]any{}
			}
			named[k] = Value(v)
			continue
		}
		args = append(args, Value(w))
	}
	return args, named
}

var (
	reInt   = regexp.MustCompile(`^-?(0|[1-9][0-9]{0,17})$`)
	reFloat = regexp.MustCompile(`^-?(0|[1-9][0-9]*)\.[0-9]+$`)
)

// Value reads one value. Text that YAML would turn into something else than what was typed stays
// text, as Salt does it: times, octal numbers, what has a colon or a hash in it.
func Value(s string) any {
	switch {
	case s == "":
		return ""
	case reInt.MatchString(s):
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			return n
		}
	case reFloat.MatchString(s):
		if f, err := strconv.ParseFloat(s, 64); err == nil {
			return f
		}
	}
	switch strings.ToLower(s) {
	case "true":
		return true
	case "false":
		return false
	case "none", "null":
		return nil
	}
	if s[0] == '[' || s[0] == '{' || s[0] == '"' && strings.HasSuffix(s, `"`) || s[0] == '\'' && strings.HasSuffix(s, "'") {
		var v any
		if err := yaml.Unmarshal([]byte(s), &v); err == nil && v != nil {
			if b, err := json.Marshal(v); err == nil { // mappings with keys that are no texts have no form here
				var out any
				if json.Unmarshal(b, &out) == nil {
					return out
				}
			}
		}
	}
	return s
}
