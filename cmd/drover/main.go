// Command drover is the one program of the house: it parses the verb, carries
// signals and turns errors into exit codes. Nothing else belongs here.
package main

func main() {}
