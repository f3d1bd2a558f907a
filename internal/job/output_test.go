package job

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"drover/internal/job/wire"
)

func TestOutputs(t *testing.T) {
	v := Verdict{Host: "web-01", State: wire.Answered, Return: json.RawMessage(`{"b":[1,"two",{"x":null}],"a":true,"evil":"\u001b[31mred\u0007"}`)}
	for out, want := range map[string]string{
		"nested": "web-01:\n    ----------\n    a:\n        True\n    b:\n        - 1\n        - two\n        |_\n          ----------\n          x:\n              None\n    evil:\n        \uFFFD[31mred\uFFFD\n",
		"txt":    "web-01: {'a': True, 'b': [1, 'two', {'x': None}], 'evil': '\uFFFD[31mred\uFFFD'}\n",
		"raw":    "{'web-01': {'a': True, 'b': [1, 'two', {'x': None}], 'evil': '\uFFFD[31mred\uFFFD'}}\n",
		"quiet":  "",
	} {
		var b bytes.Buffer
		if err := Print(&b, out, v); err != nil || b.String() != want {
			t.Errorf("%s: %v\n%q\nwant\n%q", out, err, b.String(), want)
		}
	}
	for _, out := range []string{"json", "yaml"} {
		var b bytes.Buffer
		if err := Print(&b, out, v); err != nil || !strings.Contains(b.String(), "two") || strings.Contains(b.String(), "\x1b") {
			t.Errorf("%s: %v %q", out, err, b.String())
		}
	}
	var b bytes.Buffer
	high := Verdict{Host: "h", State: wire.Answered, Return: json.RawMessage(`{"file_|-motd_|-/etc/motd_|-managed":{"__run_num__":1,"changes":{"diff":"+x"},"comment":"done","duration":3.5,"name":"/etc/motd","result":true,"start_time":"10:00"},"pkg_|-a_|-a_|-installed":{"__run_num__":0,"changes":{},"comment":"ok","duration":1,"name":"a","result":false,"start_time":"09:59"}}`)}
	if err := Print(&b, "highstate", high); err != nil || !strings.Contains(b.String(), "Succeeded: 1 (changed=1)\nFailed:    1\n") || strings.Index(b.String(), "ID: a") > strings.Index(b.String(), "ID: motd") {
		t.Errorf("highstate: %v\n%s", err, b.String())
	}
	b.Reset()
	if err := Print(&b, "table", Verdict{Host: "h", State: wire.Answered, Return: json.RawMessage(`{"/":{"used":"1","free":"2"},"/boot":{"used":"3","free":"4"}}`)}); err != nil || !strings.Contains(b.String(), "/boot  4     3") {
		t.Errorf("table: %v\n%s", err, b.String())
	}
	for state, want := range map[string]string{wire.Offline: "offline", wire.Silent: "connected, and silent", wire.TimedOut: "timed out at x", wire.Running: "still running at x"} {
		b.Reset()
		if err := Print(&b, "", Verdict{Host: "h", State: state, Step: "x"}); err != nil || !strings.Contains(b.String(), want) {
			t.Errorf("%s: %v %q", state, err, b.String())
		}
	}
	if err := Print(&b, "fancy", v); err == nil {
		t.Error("an output that is none prints")
	}
}

func TestLineIsTheCommand(t *testing.T) {
	sp := Spec{Form: "compound", Target: "G@os:CentOS* and not web*", Fun: "cmd.run", Args: []any{"echo 'a b'", 3.0}, Batch: "10%"}
	if got, want := sp.Line(), `drover run -C -b 10% 'G@os:CentOS* and not web*' cmd.run 'echo '\''a b'\''' 3`; got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}
