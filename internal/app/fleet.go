package app

import (
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"

	"drover/internal/agent/sim"
	"drover/internal/cli"
	"drover/internal/fleet"
)

type fleetVerb struct {
	N        int    `arg:"" help:"How many hosts."`
	Prefix   string `default:"sim" help:"Beginning of their names."`
	First    int    `default:"1" help:"Number of the first."`
	Dir      string `help:"Directory where they keep their keys, to come back as the same hosts; in memory when not given." type:"path"`
	Packages int    `default:"600" help:"Packages that each has."`
	Debug    bool   `help:"Log more."`
}

// Run simulates hosts until it is stopped.
func (v fleetVerb) Run(e *cli.Env, l *line) error {
	ca := ""
	if l.CA != "" {
		b, err := os.ReadFile(l.CA)
		if err != nil {
			return err
		}
		ca = string(b)
	}
	log := slog.New(slog.DiscardHandler)
	if v.Debug {
		log = logger(e.Err, true)
	}
	var mu sync.Mutex // guards tickets
	var tickets []string
	ticket := func(string) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		if len(tickets) == 0 {
			var out map[string][]string
			in := fleet.Ticket{Host: v.Prefix + "-*", Count: min(v.N, 1000), Labels: map[string]string{"simulated": "yes"}}
			if err := e.Client.Call(e.Ctx, "POST", "/api/v1/hosts/tickets", in, &out); err != nil {
				return "", err
			}
			tickets = out["tickets"]
		}
		t := tickets[0]
		tickets = tickets[1:]
		return t, nil
	}
	c := *e.Client.HTTP
	c.Timeout = time.Minute
	if tr, ok := c.Transport.(*http.Transport); ok {
		tr = tr.Clone()
		tr.MaxIdleConnsPerHost, tr.MaxConnsPerHost = 64, 128
		c.Transport = tr
	}
	began := time.Now()
	f, err := sim.Start(e.Ctx, sim.Config{N: v.N, First: v.First, Prefix: v.Prefix, URL: e.Client.Base, CA: ca, Dir: v.Dir, Ticket: ticket, Version: e.Version, Log: log, HTTP: &c, Packages: v.Packages})
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Wait(e.Ctx); err != nil {
		return err
	}
	fmt.Fprintf(e.Out, "%d hosts are connected after %.1f s; stop them with Ctrl-C\n", v.N, time.Since(began).Seconds())
	<-e.Ctx.Done()
	return nil
}
