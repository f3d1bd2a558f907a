package network

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

const maxBody = 16 << 20

func (h *host) http() []module.Function {
	query := module.Changes("http.query", "Sends a request and tells what came back.\n\nsalt '*' http.query http://somelink.com/ method=POST data='{\"a\": 1}'", h.query,
		module.Need("url", module.Str), module.May("method", module.Str, "GET"), module.May("params", module.Any, nil), module.May("data", module.Any, nil), module.May("data_file", module.Str, nil),
		module.May("header_dict", module.Map, nil), module.May("header_list", module.List, nil), module.May("header_file", module.Str, nil), module.May("username", module.Str, nil), module.May("password", module.Str, nil),
		module.May("decode", module.Bool, false), module.May("decode_type", module.Str, "auto"), module.May("text", module.Bool, false), module.May("status", module.Bool, false), module.May("headers", module.Bool, false),
		module.May("timeout", module.Num, 60.0), module.May("verify_ssl", module.Bool, true), module.May("ca_bundle", module.Str, nil), module.May("cert", module.Any, nil), module.May("raise_error", module.Bool, true),
		module.May("agent", module.Str, nil), module.May("follow_redirects", module.Bool, true), module.May("backend", module.Str, nil), module.May("test", module.Bool, false), module.May("test_url", module.Str, nil))
	return []module.Function{query}
}

// query sends a request. To whom is the caller's own affair: what the host may reach, it may.
func (h *host) query(ctx context.Context, c *module.Call) (any, error) {
	target := c.Str("url")
	if c.Bool("test") && c.Has("test_url") {
		target = c.Str("test_url")
	}
	u, err := url.Parse(target)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fault.Invalid("bad_url", "%q is no address of http or https", target)
	}
	if params, ok := c.Any("params").(map[string]any); ok {
		u.RawQuery = addQuery(u.RawQuery, encodeForm(params))
	} else if c.Has("params") {
		u.RawQuery = addQuery(u.RawQuery, strings.TrimPrefix(module.Text(c.Any("params")), "?"))
	}
	form, body, err := h.requestBody(c)
	if err != nil {
		return nil, err
	}
	ctx, cancel := within(ctx, c.Num("timeout"))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, strings.ToUpper(c.Str("method")), u.String(), strings.NewReader(body))
	if err != nil {
		return nil, fault.Invalid("bad_request", "this cannot be sent to %s", target).Wrap(err)
	}
	req.Header.Set("User-Agent", "drover")
	if c.Has("agent") {
		req.Header.Set("User-Agent", c.Str("agent"))
	}
	if form {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for k, v := range c.Map("header_dict") {
		req.Header.Set(k, module.Text(v))
	}
	lines := c.Strs("header_list")
	if c.Has("header_file") {
		s, err := module.ReadFile(h.path(c.Str("header_file")))
		if err != nil {
			return nil, err
		}
		lines = append(lines, module.Lines(s)...)
	}
	for _, l := range lines {
		if k, v, ok := strings.Cut(l, ":"); ok {
			req.Header.Set(strings.TrimSpace(k), strings.TrimSpace(v))
		}
	}
	if v := req.Header.Get("Host"); v != "" {
		req.Host = v
	}
	if c.Has("username") {
		req.SetBasicAuth(c.Str("username"), c.Str("password"))
	}
	client, err := h.client(c)
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.DeadlineExceeded) {
			return nil, cause
		}
		return map[string]any{"error": err.Error()}, nil
	}
	return response(c, resp)
}

func addQuery(a, b string) string { return strings.Trim(a+"&"+b, "&") }

func encodeForm(m map[string]any) string {
	v := url.Values{}
	for k, x := range m {
		if l, ok := x.([]any); ok {
			for _, e := range l {
				v.Add(k, module.Text(e))
			}
			continue
		}
		v.Set(k, module.Plain(x))
	}
	return v.Encode()
}

// requestBody is what is sent; a mapping is sent as a form.
func (h *host) requestBody(c *module.Call) (form bool, body string, err error) {
	if c.Has("data_file") {
		body, err = module.ReadFile(h.path(c.Str("data_file")))
		return false, body, err
	}
	switch d := c.Any("data").(type) {
	case nil:
		return false, "", nil
	case map[string]any:
		return true, encodeForm(d), nil
	case []any:
		b, err := json.Marshal(d)
		return false, string(b), err
	default:
		return true, module.Text(d), nil
	}
}

// client is made for each request, since each says whom to trust.
func (h *host) client(c *module.Call) (*http.Client, error) {
	conf := &tls.Config{InsecureSkipVerify: !c.Bool("verify_ssl")} //nolint:gosec // on request
	if c.Has("ca_bundle") {
		s, err := module.ReadFile(h.path(c.Str("ca_bundle")))
		if err != nil {
			return nil, err
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM([]byte(s)) {
			return nil, fault.Invalid("bad_ca_bundle", "there is no certificate in %s", c.Str("ca_bundle"))
		}
	}
	if c.Has("cert") {
		cert := module.Text(c.Any("cert"))
		key := cert
		if l := listOf(c.Any("cert")); len(l) == 2 {
			cert, key = module.Text(l[0]), module.Text(l[1])
		}
		pair, err := tls.LoadX509KeyPair(h.path(cert), h.path(key))
		if err != nil {
			return nil, fault.Invalid("bad_certificate", "the certificate %s cannot be used", cert).Wrap(err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: conf, DialContext: (&net.Dialer{Timeout: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout: 30 * time.Second, MaxResponseHeaderBytes: 1 << 20, ForceAttemptHTTP2: true}}
	if !c.Bool("follow_redirects") {
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	}
	return client, nil
}

// response is Salt's answer: the body as text or decoded, and what else was asked for.
func response(c *module.Call, resp *http.Response) (any, error) {
	out := map[string]any{}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return map[string]any{"error": err.Error()}, nil //nolint:nilerr // Salt's shape
	}
	if len(b) > maxBody {
		return nil, fault.TooLarge("body_too_large", "%s answers with more than %d bytes", resp.Request.URL.Redacted(), maxBody).Fix("fetch it as a file: cp.get_url")
	}
	text := module.Valid(string(b))
	failed := resp.StatusCode >= 400
	if c.Bool("status") || failed {
		out["status"] = int64(resp.StatusCode)
	}
	if failed && c.Bool("raise_error") {
		out["error"] = "HTTP " + resp.Status
	}
	if c.Bool("headers") {
		head := map[string]any{}
		for k, v := range resp.Header {
			head[k] = module.Valid(strings.Join(v, ", "))
		}
		out["headers"] = head
	}
	switch {
	case c.Bool("decode"):
		v, why := decodeBody(c.Str("decode_type"), resp.Header.Get("Content-Type"), b)
		switch {
		case why != "" && !failed:
			out["error"] = why
			out["body"] = text
		case v == nil || why != "":
			out["body"] = text
		default:
			out["dict"] = v
		}
	default:
		out["body"] = text
	}
	if c.Bool("text") {
		out["text"] = text
	}
	return out, nil
}

func decodeBody(kind, content string, b []byte) (v any, why string) {
	if kind == "auto" || kind == "" {
		switch {
		case strings.Contains(content, "json"):
			kind = "json"
		case strings.Contains(content, "yaml"):
			kind = "yaml"
		default:
			kind = "plain"
		}
	}
	switch kind {
	case "json":
		if err := json.Unmarshal(b, &v); err != nil {
			return nil, "the answer is no JSON: " + err.Error()
		}
	case "yaml":
		if err := yaml.Unmarshal(b, &v); err != nil {
			return nil, "the answer is no YAML: " + err.Error()
		}
	case "plain":
		return nil, ""
	default:
		return nil, "Invalid decode_type specified. Valid decode types are: json, yaml, plain"
	}
	return v, ""
}
