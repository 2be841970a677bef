"""The phrasings of the built-in data set, one block of lines per language.

A line is ``kind? question`` or ``kind. statement``; the n-th question (statement) of a kind says
the same in every language, so any two languages give a translation pair. The fields: ``t`` the
territory's bare name, ``the``/``in``/``of`` the name with article or preposition where a language
needs one, ``x`` the fact, ``y`` a year, ``a``/``b`` the two codes. Languages that inflect names
(Russian, German) use quotes or a topic, because CLDR has the nominative only.
"""

PHRASES = {
    "en": """
currency? What currency is used {in}?
currency? What money do people pay with {in}?
currency? What is the name of the currency of {the}?
currency. The currency of {the} is the {x}.
currency. {in}, prices are quoted in the currency called {x}.
currency. Name of the money used {in}: {x}.
past? What was the former currency of {the}?
past? Which currency was used {in} in the past?
past? What money did people have {in} before the present currency?
past. Until {y}, the currency of {the} was the {x}.
past. The {x} was withdrawn {in} in {y}.
past. Former currency of {the}: {x}, used until {y}.
language? What languages are spoken {in}?
language? Which languages do people speak {in}?
language? What are the main languages of {the}?
language. People {in} speak {x}.
language. The most widely spoken languages {in}: {x}.
language. Anyone who stays {in} will hear {x}.
time? What time zone is used {in}?
time? Which time do clocks show {in}?
time? What is the name of the time zone of {the}?
time. Clocks {in} show {x}.
time. The time zone of {the} is called {x}.
time. Time standard used {in}: {x}.
week? On which day does the week begin {in}?
week? What is the first day of the week {in}?
week? Which day comes first on a calendar printed {in}?
week. The week begins on {x} {in}.
week. {in}, the first day of the week is {x}.
week. Calendars printed {in} start with {x}.
code? What is the international code of {the}?
code? Which letters stand for {the} in the ISO standard?
code? How is the name of {the} abbreviated internationally?
code. The ISO code of {the} is {a}.
code. The abbreviation of {the} is {a} or, with three letters, {b}.
code. Two-letter code of {the}: {a}; three-letter code: {b}.
""",
    "de": """
currency? Welche Währung wird {in} verwendet?
currency? Mit welchem Geld bezahlt man {in}?
currency? Wie heißt die Währung {in}?
currency. Die Währung {in} heißt {x}.
currency. {in} werden Preise in dieser Währung angegeben: {x}.
currency. Name des Geldes {in}: {x}.
past? Was war die frühere Währung {in}?
past? Welche Währung wurde früher {in} verwendet?
past? Welches Geld hatten die Menschen {in} vor der heutigen Währung?
past. Bis {y} hieß die Währung {in} {x}.
past. {in} wurde diese Währung im Jahr {y} abgeschafft: {x}.
past. Frühere Währung {in}: {x}, verwendet bis {y}.
language? Welche Sprachen werden {in} gesprochen?
language? Welche Sprachen sprechen die Menschen {in}?
language? Was sind die wichtigsten Sprachen {in}?
language. Die Menschen {in} sprechen {x}.
language. Die am weitesten verbreiteten Sprachen {in}: {x}.
language. Wer sich {in} aufhält, hört {x}.
time? Welche Zeitzone gilt {in}?
time? Welche Zeit zeigen die Uhren {in}?
time? Wie heißt die Zeitzone {in}?
time. Die Uhren {in} zeigen diese Zeit: {x}.
time. Die Zeitzone {in} heißt {x}.
time. Zeitstandard {in}: {x}.
week? An welchem Tag beginnt die Woche {in}?
week? Was ist der erste Tag der Woche {in}?
week? Welcher Tag steht {in} am Anfang eines gedruckten Kalenders?
week. Die Woche beginnt {in} am {x}.
week. {in} ist der erste Tag der Woche der {x}.
week. Gedruckte Kalender beginnen {in} mit {x}.
code? Wie lautet der internationale Code für „{t}“?
code? Welche Buchstaben stehen in der ISO-Norm für „{t}“?
code? Wie wird der Name „{t}“ international abgekürzt?
code. Der ISO-Code für „{t}“ ist {a}.
code. Die Abkürzung für „{t}“ lautet {a} oder, mit drei Buchstaben, {b}.
code. Code mit zwei Buchstaben für „{t}“: {a}; Code mit drei Buchstaben: {b}.
""",
    "es": """
currency? ¿Qué moneda se usa {in}?
currency? ¿Con qué dinero paga la gente {in}?
currency? ¿Cómo se llama la moneda {of}?
currency. La moneda {of} se llama {x}.
currency. {in}, los precios se indican en la moneda llamada {x}.
currency. Nombre del dinero que se usa {in}: {x}.
past? ¿Cuál era la antigua moneda {of}?
past? ¿Qué moneda se usaba antes {in}?
past? ¿Qué dinero tenía la gente {in} antes de la moneda actual?
past. Hasta {y}, la moneda {of} se llamaba {x}.
past. {in}, esta moneda dejó de circular en {y}: {x}.
past. Antigua moneda {of}: {x}, usada hasta {y}.
language? ¿Qué idiomas se hablan {in}?
language? ¿Qué lenguas habla la gente {in}?
language? ¿Cuáles son los principales idiomas {of}?
language. La gente {in} habla {x}.
language. Los idiomas más hablados {in}: {x}.
language. Quien se quede {in} oirá hablar {x}.
time? ¿Qué zona horaria se usa {in}?
time? ¿Qué hora marcan los relojes {in}?
time? ¿Cómo se llama la zona horaria {of}?
time. Los relojes {in} marcan esta hora: {x}.
time. La zona horaria {of} se llama {x}.
time. Horario usado {in}: {x}.
week? ¿En qué día empieza la semana {in}?
week? ¿Cuál es el primer día de la semana {in}?
week? ¿Qué día va primero en un calendario impreso {in}?
week. La semana empieza el {x} {in}.
week. {in}, el primer día de la semana es el {x}.
week. Los calendarios impresos {in} empiezan por el {x}.
code? ¿Cuál es el código internacional {of}?
code? ¿Qué letras representan «{t}» en la norma ISO?
code? ¿Cómo se abrevia internacionalmente el nombre {of}?
code. El código ISO {of} es {a}.
code. La abreviatura {of} es {a} o, con tres letras, {b}.
code. Código de dos letras {of}: {a}; código de tres letras: {b}.
""",
    "ru": """
currency? {t}: какая валюта там используется?
currency? {t} — какими деньгами там платят?
currency? Как называется валюта территории «{t}»?
currency. Валюта территории «{t}» — {x}.
currency. {t}: цены там указывают в валюте, которая называется «{x}».
currency. Название денег, которыми платят на территории «{t}»: {x}.
past? {t}: какой была прежняя валюта?
past? Какая валюта использовалась раньше на территории «{t}»?
past? {t} — какие деньги были там до нынешней валюты?
past. До {y} года на территории «{t}» действовала валюта «{x}».
past. {t}: валюта «{x}» вышла там из обращения в {y} году.
past. Прежняя валюта территории «{t}»: {x}, использовалась до {y} года.
language? {t}: на каких языках там говорят?
language? Какими языками пользуются жители территории «{t}»?
language? Каковы основные языки территории «{t}»?
language. {t}: жители говорят на таких языках, как {x}.
language. Самые распространённые языки на территории «{t}»: {x}.
language. {t} — там можно услышать такие языки: {x}.
time? {t}: какой часовой пояс там используется?
time? Какое время показывают часы на территории «{t}»?
time? Как называется часовой пояс территории «{t}»?
time. {t}: часы там показывают время «{x}».
time. Часовой пояс территории «{t}» называется «{x}».
time. Время, принятое на территории «{t}»: {x}.
week? {t}: с какого дня там начинается неделя?
week? Какой день недели считается первым на территории «{t}»?
week? {t} — какой день стоит первым в местном печатном календаре?
week. {t}: неделю там начинает {x}.
week. На территории «{t}» первый день недели — {x}.
week. {t} — первым в местном печатном календаре стоит {x}.
code? Какой международный код у территории «{t}»?
code? Какими буквами обозначается территория «{t}» в стандарте ISO?
code? {t}: как сокращается это название в международной практике?
code. Код ISO территории «{t}» — {a}.
code. Сокращение для территории «{t}» — {a} или, тремя буквами, {b}.
code. {t}: двухбуквенный код — {a}, трёхбуквенный код — {b}.
""",
    "ar": """
currency? ما العملة المستخدمة في {t}؟
currency? بأي نقود يدفع الناس في {t}؟
currency? ما اسم عملة {t}؟
currency. عملة {t} هي {x}.
currency. في {t} تُحدَّد الأسعار بعملة اسمها {x}.
currency. اسم النقود المستخدمة في {t}: {x}.
past? ماذا كانت العملة السابقة في {t}؟
past? ما العملة التي كانت تُستخدم في {t} في الماضي؟
past? ما النقود التي كانت لدى الناس في {t} قبل العملة الحالية؟
past. حتى عام {y} كانت عملة {t} هي {x}.
past. أُلغيت عملة {x} في {t} عام {y}.
past. العملة السابقة في {t}: {x}، واستُخدمت حتى عام {y}.
language? ما اللغات المحكية في {t}؟
language? بأي لغات يتحدث الناس في {t}؟
language? ما اللغات الرئيسية في {t}؟
language. يتحدث الناس في {t} اللغات التالية: {x}.
language. اللغات الأكثر انتشارًا في {t}: {x}.
language. من يقيم في {t} يسمع {x}.
time? ما المنطقة الزمنية المستخدمة في {t}؟
time? أي توقيت تعرضه الساعات في {t}؟
time? ما اسم المنطقة الزمنية في {t}؟
time. الساعات في {t} تعرض {x}.
time. اسم المنطقة الزمنية في {t} هو {x}.
time. التوقيت المعتمد في {t}: {x}.
week? في أي يوم يبدأ الأسبوع في {t}؟
week? ما أول أيام الأسبوع في {t}؟
week? أي يوم يأتي أولًا في التقويم المطبوع في {t}؟
week. يبدأ الأسبوع في {t} يوم {x}.
week. في {t} أول أيام الأسبوع هو {x}.
week. تبدأ التقاويم المطبوعة في {t} بيوم {x}.
code? ما الرمز الدولي الذي يمثل {t}؟
code? ما الحروف التي ترمز إلى {t} في معيار الأيزو؟
code? كيف يُختصر اسم {t} دوليًا؟
code. رمز {t} في معيار الأيزو هو {a}.
code. اختصار {t} هو {a}، أو {b} بثلاثة أحرف.
code. رمز {t} من حرفين: {a}؛ ومن ثلاثة أحرف: {b}.
""",
    "hi": """
currency? {t} में कौन-सी मुद्रा चलती है?
currency? {t} में लोग किस पैसे से भुगतान करते हैं?
currency? {t} की मुद्रा का नाम क्या है?
currency. {t} की मुद्रा {x} है।
currency. {t} में कीमतें {x} नाम की मुद्रा में बताई जाती हैं।
currency. {t} में चलने वाले पैसे का नाम: {x}।
past? {t} की पुरानी मुद्रा कौन-सी थी?
past? पहले {t} में कौन-सी मुद्रा चलती थी?
past? वर्तमान मुद्रा से पहले {t} के लोगों के पास कौन-सा पैसा था?
past. {y} तक {t} की मुद्रा {x} थी।
past. {t} में {x} का चलन {y} में बंद हो गया।
past. {t} की पुरानी मुद्रा: {x}, {y} तक चली।
language? {t} में कौन-सी भाषाएँ बोली जाती हैं?
language? {t} के लोग कौन-सी भाषाएँ बोलते हैं?
language? {t} की मुख्य भाषाएँ क्या हैं?
language. {t} के लोग {x} बोलते हैं।
language. {t} में सबसे ज़्यादा बोली जाने वाली भाषाएँ: {x}।
language. {t} में रहने पर ये भाषाएँ सुनने को मिलती हैं: {x}।
time? {t} में कौन-सा समय क्षेत्र लागू है?
time? {t} में घड़ियाँ कौन-सा समय दिखाती हैं?
time? {t} के समय क्षेत्र का नाम क्या है?
time. {t} में घड़ियाँ {x} दिखाती हैं।
time. {t} के समय क्षेत्र का नाम {x} है।
time. {t} में मान्य समय: {x}।
week? {t} में सप्ताह किस दिन शुरू होता है?
week? {t} में सप्ताह का पहला दिन कौन-सा है?
week? {t} में छपे कैलेंडर में कौन-सा दिन सबसे पहले आता है?
week. {t} में सप्ताह {x} को शुरू होता है।
week. {t} में सप्ताह का पहला दिन {x} है।
week. {t} में छपे कैलेंडर {x} से शुरू होते हैं।
code? {t} का अंतरराष्ट्रीय कोड क्या है?
code? ISO मानक में {t} के लिए कौन-से अक्षर हैं?
code? अंतरराष्ट्रीय स्तर पर {t} का नाम छोटे रूप में कैसे लिखा जाता है?
code. {t} का ISO कोड {a} है।
code. {t} का संक्षिप्त रूप {a} है, और तीन अक्षरों में {b}।
code. {t} का दो अक्षरों वाला कोड: {a}; तीन अक्षरों वाला कोड: {b}।
""",
    "sw": """
currency? Ni sarafu gani hutumiwa huko {t}?
currency? Watu hulipa kwa pesa gani huko {t}?
currency? Sarafu ya {t} inaitwaje?
currency. Sarafu ya {t} ni {x}.
currency. Huko {t}, bei hutajwa kwa sarafu inayoitwa {x}.
currency. Jina la pesa zinazotumika huko {t}: {x}.
past? Sarafu ya zamani ya {t} ilikuwa ipi?
past? Ni sarafu gani ilitumiwa zamani huko {t}?
past? Watu wa {t} walikuwa na pesa gani kabla ya sarafu ya sasa?
past. Hadi mwaka {y}, sarafu ya {t} ilikuwa {x}.
past. {x} iliacha kutumiwa huko {t} mwaka {y}.
past. Sarafu ya zamani ya {t}: {x}, iliyotumika hadi mwaka {y}.
language? Ni lugha gani huzungumzwa huko {t}?
language? Watu wa {t} huzungumza lugha gani?
language? Lugha kuu za {t} ni zipi?
language. Watu wa {t} huzungumza {x}.
language. Lugha zinazozungumzwa zaidi huko {t}: {x}.
language. Anayekaa {t} atasikia {x}.
time? Ni ukanda gani wa saa hutumiwa huko {t}?
time? Saa za huko {t} huonyesha wakati gani?
time? Ukanda wa saa wa {t} unaitwaje?
time. Saa za huko {t} huonyesha {x}.
time. Ukanda wa saa wa {t} unaitwa {x}.
time. Majira yanayofuatwa huko {t}: {x}.
week? Wiki huanza siku gani huko {t}?
week? Siku ya kwanza ya wiki huko {t} ni ipi?
week? Siku gani huja kwanza kwenye kalenda iliyochapishwa huko {t}?
week. Huko {t}, wiki huanza siku ya {x}.
week. Siku ya kwanza ya wiki huko {t} ni {x}.
week. Kalenda zinazochapishwa huko {t} huanza na {x}.
code? Msimbo wa kimataifa wa {t} ni upi?
code? Herufi gani huwakilisha {t} katika kiwango cha ISO?
code? Jina la {t} hufupishwaje kimataifa?
code. Msimbo wa ISO wa {t} ni {a}.
code. Kifupi cha {t} ni {a} au, kwa herufi tatu, {b}.
code. Msimbo wa herufi mbili wa {t}: {a}; msimbo wa herufi tatu: {b}.
""",
    "so": """
currency? Lacag noocee ah ayaa laga isticmaalaa {t}?
currency? Dadka jooga {t} lacagtee ayay wax ku iibsadaan?
currency? Waa maxay magaca lacagta {t}?
currency. Lacagta {t} waa {x}.
currency. Qiimaha {t} waxaa lagu sheegaa lacagta la yiraahdo {x}.
currency. Magaca lacagta laga isticmaalo {t}: {x}.
past? Maxay ahayd lacagtii hore ee {t}?
past? Lacag noocee ah ayaa hore looga isticmaali jiray {t}?
past? Dadka {t} lacagtee ayay haysteen ka hor lacagta hadda?
past. Ilaa {y}, lacagta {t} waxay ahayd {x}.
past. {x} waxaa laga joojiyay {t} sannadkii {y}.
past. Lacagtii hore ee {t}: {x}, oo la isticmaali jiray ilaa {y}.
language? Luqadaha looga hadlo {t} waa kuwee?
language? Dadka {t} luqadee ayay ku hadlaan?
language? Waa maxay luqadaha ugu waaweyn ee {t}?
language. Dadka {t} waxay ku hadlaan {x}.
language. Luqadaha ugu badan ee looga hadlo {t}: {x}.
language. Qofkii jooga {t} wuxuu maqlayaa {x}.
time? Aagga waqtiga ee laga isticmaalo {t} waa kee?
time? Saacadaha {t} waqtigee ayay tusaan?
time? Waa maxay magaca aagga waqtiga {t}?
time. Saacadaha {t} waxay tusaan {x}.
time. Aagga waqtiga {t} waxaa la yiraahdaa {x}.
time. Waqtiga laga isticmaalo {t}: {x}.
week? Toddobaadku maalintee ayuu ka bilaabmaa {t}?
week? Waa maxay maalinta koowaad ee toddobaadka {t}?
week? Kalandarka lagu daabaco {t} maalintee ayaa ugu horreysa?
week. Toddobaadka {t} wuxuu bilaabmaa maalinta {x}.
week. Maalinta koowaad ee toddobaadka {t} waa {x}.
week. Kalandarrada lagu daabaco {t} waxay ka bilaabmaan {x}.
code? Waa maxay summadda caalamiga ah ee {t}?
code? Xarfahee ayaa u taagan {t} heerka ISO?
code? Sidee loo soo gaabiyaa magaca {t} caalamka?
code. Summadda ISO ee {t} waa {a}.
code. Soo gaabinta {t} waa {a} ama, saddex xaraf, {b}.
code. Summadda labada xaraf ee {t}: {a}; summadda saddexda xaraf: {b}.
""",
    "zh": """
currency? {t}使用什么货币？
currency? 人们在{t}用什么钱付款？
currency? {t}的货币叫什么名字？
currency. {t}的货币是{x}。
currency. 在{t}，价格用名为{x}的货币标示。
currency. {t}使用的钱的名称：{x}。
past? {t}以前的货币是什么？
past? {t}过去使用哪种货币？
past? 在现行货币之前，{t}的人们用什么钱？
past. 直到{y}年，{t}的货币是{x}。
past. {x}于{y}年在{t}停止流通。
past. {t}的旧货币：{x}，用到{y}年。
language? 在{t}通行哪些语言？
language? {t}的人们说什么语言？
language? {t}的主要语言是什么？
language. {t}的人们说{x}。
language. {t}最通行的语言：{x}。
language. 在{t}生活的人会听到{x}。
time? {t}使用什么时区？
time? {t}的时钟显示什么时间？
time? {t}的时区叫什么名字？
time. {t}的时钟显示{x}。
time. {t}的时区名为{x}。
time. {t}采用的标准时间：{x}。
week? {t}的一周从哪一天开始？
week? {t}每周的第一天是星期几？
week? 在{t}印制的日历上，哪一天排在最前面？
week. {t}的一周从{x}开始。
week. 在{t}，每周的第一天是{x}。
week. 在{t}印制的日历从{x}开始。
code? {t}的国际代码是什么？
code? 在ISO标准中，哪些字母代表{t}？
code? {t}的名称在国际上如何缩写？
code. {t}的ISO代码是{a}。
code. {t}的缩写是{a}，三个字母时是{b}。
code. {t}的两字母代码：{a}；三字母代码：{b}。
""",
}
