package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"drover/internal/fault"
)

// Client speaks to a drover server.
type Client struct {
	Base  string // "https://drover.example:8443"
	Token string // an API token, or "" for what everybody may read
	HTTP  *http.Client
}

// Call sends in as JSON (nil: no body) and decodes the answer into out (nil: thrown
// away). A failed answer comes back as the server's own fault.
func (c *Client) Call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	h := http.Header{"Accept": {"application/json"}}
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
		h.Set("Content-Type", "application/json")
	}
	resp, err := c.Do(ctx, method, path, h, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil || resp.StatusCode == http.StatusNoContent {
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
		return err
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fault.Unavailable("answer_cut", "the answer of %s %s is not whole", method, path).Wrap(err).Fix("repeat the call")
	}
	return nil
}

// Do sends a request and returns an answer below 400, whose body the caller closes.
// path is relative to Base, already escaped, and may carry a query; a full URL of the same server is taken too.
func (c *Client) Do(ctx context.Context, method, path string, h http.Header, body io.Reader) (*http.Response, error) {
	u := strings.TrimSuffix(c.Base, "/") + path
	if strings.HasPrefix(path, "http://") || strings.HasPrefix(path, "https://") {
		u = path
	}
	req, err := http.NewRequestWithContext(ctx, method, u, body)
	if err != nil {
		return nil, fault.Invalid("url", "%q is no URL of a drover server", u).Wrap(err)
	}
	for k, v := range h {
		req.Header[k] = v
	}
	if n := h.Get("Content-Length"); n != "" {
		req.Header.Del("Content-Length")
		if req.ContentLength, err = strconv.ParseInt(n, 10, 64); err != nil {
			return nil, fault.Internal("content_length", "bad length %q", n)
		}
	}
	if base, err := url.Parse(c.Base); c.Token != "" && err == nil && base.Host == req.URL.Host && base.Scheme == req.URL.Scheme { // the token is for this server only
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	hc := c.HTTP
	if hc == nil {
		hc = http.DefaultClient
	}
	resp, err := hc.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fault.Unavailable("server_away", "the drover server at %s does not answer", c.Base).Wrap(err).
			Fix("check DROVER_URL, that the server runs, and its certificate")
	}
	if resp.StatusCode < 400 {
		return resp, nil
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var p Problem
	if json.Unmarshal(b, &p) != nil || p.Code == "" {
		p = Problem{Code: "http_" + strconv.Itoa(resp.StatusCode), Detail: method + " " + path + ": " + resp.Status}
	}
	if len(p.Errors) > 0 {
		p.Detail += ": " + strings.Join(p.Errors, "; ")
	}
	return nil, fault.FromStatus(resp.StatusCode, p.Code, p.Detail, p.Remedy)
}
