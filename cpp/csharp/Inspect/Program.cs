// Scores images: Inspect ARTIFACT IMAGE... [--backend NAME] [--threads COUNT]
//
// Prints a line for each image: name, score and OK or NG, and under it a line for each defect. Exits
// with 0 when all are OK (or there is no threshold), 2 when one is NG, 1 for an error.
using System;
using System.Collections.Generic;
using System.Globalization;
using System.IO;
using System.Text;
using Destseg;

namespace Inspect
{
    internal static class Program
    {
        private static int Main(string[] arguments)
        {
            try { return Run(arguments); }
            catch (Exception error) when (error is DestsegException || error is IOException ||
                                          error is ArgumentException || error is DllNotFoundException)
            {
                Console.Error.WriteLine("Error: " + error.Message.Replace('\n', ' '));
                return 1;
            }
        }

        private static int Run(string[] arguments)
        {
            Console.OutputEncoding = new UTF8Encoding(false);
            var options = new Options();
            var paths = new List<string>();
            for (int i = 0; i < arguments.Length; ++i)
                if (arguments[i] == "--backend" && i + 1 < arguments.Length) options.Backend = arguments[++i];
                else if (arguments[i] == "--threads" && i + 1 < arguments.Length)
                    options.Threads = int.Parse(arguments[++i], CultureInfo.InvariantCulture);
                else paths.Add(arguments[i]);
            if (paths.Count < 2)
                throw new ArgumentException(
                    "Usage: Inspect ARTIFACT IMAGE... [--backend NAME] [--threads COUNT]");
            bool bad = false;
            using (var predictor = new Predictor(paths[0], options))
                for (int i = 1; i < paths.Count; ++i) bad |= Show(predictor, paths[i]);
            return bad ? 2 : 0;
        }

        private static bool Show(Predictor predictor, string path)
        {
            Prediction prediction = predictor.Infer(Images.Read(path));
            Result result = prediction.Results[0];
            string verdict = result.Verdict == Verdict.Anomalous ? "NG"
                : result.Verdict == Verdict.Normal ? "OK" : "undecided";
            Console.WriteLine(Path.GetFileName(path) + " " + Number(result.Score) + " " + verdict);
            if (result.Verdict != Verdict.Anomalous) return false;
            foreach (Defect defect in prediction.Defects())
                Console.WriteLine(
                    "defect x " + defect.X + " y " + defect.Y + " width " + defect.Width + " height " +
                    defect.Height + " area " + defect.Area + " peak " + Number(defect.Peak));
            return true;
        }

        // Nine digits tell every float from every other.
        private static string Number(float value)
        {
            return value.ToString("G9", CultureInfo.InvariantCulture);
        }
    }
}
