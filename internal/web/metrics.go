package web

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Counter is a number at /metrics that only grows, one for each set of values of its labels.
// Whoever adds to it keeps the values few: what clients make up is no value.
type Counter struct{ vec *prometheus.CounterVec }

// Counter makes a counter. It panics when the name is taken: two parts of the program mean
// different things by it.
func (s *Server) Counter(name, help string, labels ...string) *Counter {
	c := &Counter{prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)}
	s.metrics.MustRegister(c.vec)
	return c
}

// Add adds n for these values of the labels.
func (c *Counter) Add(n float64, values ...string) { c.vec.WithLabelValues(values...).Add(n) }

// Gauge adds a number to /metrics that is asked for each time.
func (s *Server) Gauge(name, help string, value func() float64) {
	s.metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
}

// Gauges adds numbers to /metrics, one for each value of a label, that are asked for each time.
func (s *Server) Gauges(name, help, label string, values func() map[string]float64) {
	s.metrics.MustRegister(&gauges{prometheus.NewDesc(name, help, []string{label}, nil), values})
}

type gauges struct {
	desc   *prometheus.Desc
	values func() map[string]float64
}

// Describe implements prometheus.Collector.
func (g *gauges) Describe(c chan<- *prometheus.Desc) { c <- g.desc }

// Collect implements prometheus.Collector.
func (g *gauges) Collect(c chan<- prometheus.Metric) {
	for label, v := range g.values() {
		c <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, v, label)
	}
}

// newMetrics makes the collection of a server's numbers, with those of the process.
func (s *Server) newMetrics() {
	s.metrics = prometheus.NewRegistry()
	s.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	s.Handle("GET /metrics", promhttp.HandlerFor(s.metrics, promhttp.HandlerOpts{}))
}
