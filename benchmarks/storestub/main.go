// Storestub stands in for Azure Blob Storage in benchmarks: fast enough not to be what is measured.
// One account, any container, no authentication, everything in memory. For semantics the tests have Azurite.
//
//	storestub -port 0 -delay 10ms -rate 400000000 -small 10x1000x700 -big 1073741824
//
// Prints "listening on PORT". Container "data" then holds MNIST_FLAT/<class>/<class>_<i>.jpg and big/one.bin.
// GET /__stats returns requests and bytes by operation as JSON and starts counting anew.
package main

import (
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"strings"
	"time"
)

func main() {
	port := flag.Int("port", 0, "0: any that is free")
	delay := flag.Duration("delay", 0, "added to every request")
	rate := flag.Int64("rate", 0, "bytes a second of the link in each direction, 0: no limit")
	small := flag.String("small", "", "classes x files x bytes, as in 10x1000x700")
	big := flag.Int64("big", 0, "bytes of big/one.bin")
	flag.Parse()

	data := newContainer()
	data.fillSmall(*small)
	data.fillBig(*big)
	server := &server{delay: *delay, down: newLink(*rate), up: newLink(*rate), containers: map[string]*container{"data": data}}
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", *port))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on %d\n", listener.Addr().(*net.TCPAddr).Port)
	log.Fatal(http.Serve(listener, server))
}

type server struct {
	delay      time.Duration
	down, up   *link
	counts     counts
	containers map[string]*container
}

// ServeHTTP expects /ACCOUNT/CONTAINER[/BLOB].
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/__stats" {
		s.counts.report(w)
		return
	}
	time.Sleep(s.delay)
	parts := strings.SplitN(strings.TrimPrefix(r.URL.Path, "/"), "/", 3)
	if len(parts) < 2 || s.containers[parts[1]] == nil {
		fail(w, 404, "ContainerNotFound")
		return
	}
	c := s.containers[parts[1]]
	w.Header().Set("x-ms-version", "2023-11-03")
	w.Header().Set("x-ms-request-id", "storestub")
	if len(parts) == 2 || parts[2] == "" {
		s.serveContainer(w, r, c)
		return
	}
	s.serveBlob(w, r, c, parts[2])
}

func (s *server) serveContainer(w http.ResponseWriter, r *http.Request, c *container) {
	if r.URL.Query().Get("comp") == "list" {
		body := c.list(r.URL.Query())
		s.counts.add("list", len(body))
		w.Header().Set("Content-Type", "application/xml")
		w.Write(body)
		return
	}
	s.counts.add("container", 0)
	w.Header().Set("ETag", `"0x1"`)
}

func (s *server) serveBlob(w http.ResponseWriter, r *http.Request, c *container, name string) {
	query := r.URL.Query()
	switch {
	case r.Method == "GET" && query.Get("comp") == "blocklist":
		s.counts.add("get block list", 0)
		c.writeBlockList(w, name)
	case r.Method == "GET" || r.Method == "HEAD":
		s.get(w, r, c, name)
	case r.Method == "PUT" && query.Get("comp") == "block":
		s.putBlock(w, r, c, name, query.Get("blockid"))
	case r.Method == "PUT" && query.Get("comp") == "blocklist":
		s.putBlockList(w, r, c, name)
	case r.Method == "PUT":
		s.put(w, r, c, name)
	case r.Method == "DELETE":
		s.counts.add("delete", 0)
		if !c.remove(name) {
			fail(w, 404, "BlobNotFound")
			return
		}
		w.WriteHeader(202)
	default:
		fail(w, 400, "UnsupportedHttpVerb")
	}
}

func fail(w http.ResponseWriter, status int, code string) {
	w.Header().Set("x-ms-error-code", code)
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, `<?xml version="1.0" encoding="utf-8"?><Error><Code>%s</Code><Message>%s</Message></Error>`, code, code)
}
