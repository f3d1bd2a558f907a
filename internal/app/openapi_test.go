package app

import (
	"bytes"
	"encoding/json"
	"flag"
	"log/slog"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew") //nolint:gochecknoglobals // a flag of the test

// The description of the API is a promise to clients: it changes only when somebody means it.
func TestOpenAPI(t *testing.T) {
	s, err := NewServer(t.Context(), Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", NoBuilder: true, NoSigner: true}, "golden", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b, err := s.Web.OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		OpenAPI    string
		Paths      map[string]map[string]struct{ OperationID, Summary string }
		Components struct{ SecuritySchemes map[string]any }
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	if d.OpenAPI != "3.1.0" || d.Components.SecuritySchemes["token"] == nil {
		t.Errorf("version %s, schemes %v", d.OpenAPI, d.Components.SecuritySchemes)
	}
	seen := map[string]bool{}
	for path, ops := range d.Paths {
		for method, op := range ops {
			if op.OperationID == "" || op.Summary == "" || seen[op.OperationID] {
				t.Errorf("%s %s: id %q (twice: %v), summary %q", method, path, op.OperationID, seen[op.OperationID], op.Summary)
			}
			seen[op.OperationID] = true
		}
	}
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, b, "", "  "); err != nil {
		t.Fatal(err)
	}
	pretty.WriteByte('\n')
	const golden = "testdata/openapi.json"
	if *update {
		if err := os.WriteFile(golden, pretty.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(pretty.Bytes(), want) {
		t.Errorf("the API is not as %s says; if that is meant, run: go test ./internal/app -run OpenAPI -update", golden)
	}
}
